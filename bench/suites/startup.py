"""From nothing to the first picture, and what importing the client costs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from bench import jobs
from bench.bare_group import BareGroup
from bench.cluster import START_S
from bench.measure import Contestant, Options, alternate
from bench.results import Comparison, Goal, SuiteResult
from ditmesh.cli.processes import free_ports
from ditmesh.client import Client
from ditmesh.errors import DitmeshError

TITLE = "Start-up"

_MOST_IMPORT_MS = 300.0
_STOP_S = 60.0


def run(options: Options) -> SuiteResult:
    """Measure."""
    models = jobs.write_models(options.folder, (0,))
    imports = Comparison(
        "importing the client",
        "ms",
        alternate(
            {
                "ditmesh.client": _importing("ditmesh.client"),
                "grpc and numpy alone": _importing("grpc, numpy"),
            },
            options.rounds(11, 5),
        ),
        baseline="grpc and numpy alone",
    )
    first = Comparison(
        f"to the first picture, {options.ranks} ranks",
        "s",
        alternate(
            {
                "ditmesh up": lambda: _up(options, models),
                "bare torchrun": lambda: _torchrun(options, models),
            },
            options.rounds(3, 1),
            warmups=0,
        ),
        baseline="bare torchrun",
    )
    taken = median(imports.series["ditmesh.client"])
    goal = Goal("importing the client", taken, _MOST_IMPORT_MS, "ms")
    return SuiteResult([first, imports], goals=[goal])


def _importing(what: str) -> Contestant:
    """Milliseconds of the import statement in a fresh interpreter."""
    program = f"import time; t = time.perf_counter(); import {what}; print(time.perf_counter() - t)"

    def run() -> float:
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        return 1e3 * float(done.stdout)

    return run


def _up(options: Options, models: Path) -> float:
    """Seconds from `ditmesh up` until a client has its picture."""
    first = free_ports(options.ranks + 1)
    command = [sys.executable, "-m", "bench.parent", "up", "--no-local"]
    command += ["--nodes", str(options.ranks), "--models", str(models)]
    command += ["--port", str(first), "--node-port", str(first + 1)]
    job = jobs.demo_case(options.folder).client_job(1)
    started = time.monotonic()
    with (options.folder / "up.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=dict(os.environ),
        )
    try:
        with Client(f"127.0.0.1:{first}") as client:
            _sample(client, job, started + START_S)
        return time.monotonic() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_STOP_S)


def _sample(client: Client, job: dict[str, object], until: float) -> None:
    """The first picture. Who asks too early is told so."""
    while True:
        try:
            client.sample(**job)  # type: ignore[arg-type] # options by name
            return
        except DitmeshError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)


def _torchrun(options: Options, models: Path) -> float:
    """Seconds from starting torchrun until its script has the picture."""
    job = jobs.demo_case(options.folder).bare_job(1)
    started = time.monotonic()
    with BareGroup(options.folder, models, ranks=options.ranks) as bare:
        bare.run(job)
        return time.monotonic() - started
