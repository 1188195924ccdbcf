"""`ditmesh demo`: a cluster is started, samples one job, tells about it, and is gone again."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ditmesh.cli import connecting, sample, trace
from ditmesh.cli.exit_codes import UsageError, guarded
from ditmesh.cli.processes import LocalCluster, free_ports
from ditmesh.cli.status import wait_ready
from ditmesh.cli.up import add_cluster_arguments, supervise
from ditmesh.cli.watch import ready_line
from ditmesh.options import bounded
from ditmesh.supervisor import ChildEvent, ChildSpec, tell

HELP = "start a cluster, sample one job, show what happened, stop it all"
DESCRIPTION = """Starts a coordinator and eight nodes in one group, samples one job with a progress
bar, and stops everything it started, also on Ctrl-C and on failure. Writes demo.png, trace.txt
(a readable trace) and spans.jsonl.

The job is a prompt where there is a model that brings its text encoders. Else it is a golden
case: a run of ComfyUI's KSampler, whose result is compared with ComfyUI's own."""

_PROMPT_MODEL = Path("models/pixel-portraits")
_PROMPT = "a smiling woman with long red hair and glasses, green shirt, blue background"
_PROMPT_SIZE = "128x128"
_GOLDEN_MODEL = Path("tests/golden/tiny_flux_bfl.safetensors")
_GOLDEN = Path("tests/golden/flux_euler_simple_n8_cfg1_d1_b1_16x16.safetensors")
_CLIENT = "client"
_MOST_ENDS = 3  # of one process, before the demonstration is given up


@dataclass(frozen=True)
class Show:
    """What the client of a demonstration does.

    prompt and golden: a model's name and further options of `ditmesh sample`, or None. The prompt
    is used where the cluster can encode it, else the golden case.
    """

    address: str
    wait_s: float
    prompt: tuple[str, ...] | None
    golden: tuple[str, ...] | None

    @property
    def first_choice(self) -> str:
        """The model that is worth loading beforehand."""
        return (self.prompt or self.golden or ("",))[0]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--prompt", help=f"default, where {_PROMPT_MODEL} is there: {_PROMPT}")
    what.add_argument("--golden", type=Path, metavar="FILE", help=f"default: {_GOLDEN}")
    parser.add_argument(
        "--model",
        type=Path,
        metavar="PATH",
        help=f"its folder or file (default: {_PROMPT_MODEL} for a prompt, {_GOLDEN_MODEL} for a "
        "golden case)",
    )
    parser.add_argument("--size", type=sample.size, help=f"of a prompt; default: {_PROMPT_SIZE}")
    parser.add_argument("--seed", type=bounded(int, 0, 2**64 - 1), default=0, help="of a prompt")
    parser.add_argument(
        "--out", type=Path, default=Path("out"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument(
        "--wait",
        type=bounded(float, 1, 3600),
        default=120.0,
        metavar="SECONDS",
        help="give up when the group is not ready by then (default: %(default)s)",
    )
    add_cluster_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """The whole show; the exit code is its client's."""
    spans, text = args.out / "spans.jsonl", args.out / "trace.txt"
    args.out.mkdir(parents=True, exist_ok=True)
    for old in (spans, text, args.out / "demo.png"):
        old.unlink(missing_ok=True)
    events = _Events()
    with tempfile.TemporaryDirectory(prefix="ditmesh-models-") as models:
        first = free_ports(args.nodes + 1)
        show = _plan(args, Path(models), f"127.0.0.1:{first}", spans)
        cluster = LocalCluster(
            models=Path(models),
            nodes=args.nodes,
            device=args.device,
            dtype=args.dtype,
            fp8_weights=args.fp8_weights,
            compile=args.compile,
            attention=args.attention,
            port=first,
            node_port=first + 1,
            mesh=args.mesh,
            cfg_split=args.cfg_split,
            local=not args.no_local,
            preload=(show.first_choice,),
            trace_file=spans,
            otlp_endpoint=args.otlp,
            log_level=args.log_level,
        )
        print(f"starting a coordinator and {args.nodes} nodes on this machine", flush=True)
        performer = ChildSpec(_CLIENT, "ditmesh.cli.demo:client", show, restart=False)
        code = supervise(cluster, [performer], events)
    trace_id = _client_trace(spans)
    if trace_id:
        text.write_text(trace.render(spans, trace_id), encoding="utf-8")
        print(f"wrote {text}, the trace for reading, and {spans}")
    return code if events.exit_code is None else events.exit_code


class _Events:
    """Keeps the client's exit code, and gives up when a process does not stay alive."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        self._ends: Counter[str] = Counter()

    def __call__(self, event: ChildEvent) -> None:
        if event.child == _CLIENT:
            self.exit_code = event.code if self.exit_code is None else self.exit_code
            return
        tell(event)
        if event.stops_all and self.exit_code is None:
            self.exit_code = event.code
        if event.kind == "ended" and event.delay_s is not None:
            self._ends[event.child] += 1
            if self._ends[event.child] == _MOST_ENDS:
                print(f"{event.child} does not stay alive; giving up", file=sys.stderr)
                self.exit_code = 1
                os.kill(os.getpid(), signal.SIGTERM)


def client(show: Show) -> int:
    """The client's process: wait for the group, then sample like `ditmesh sample`."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return guarded(lambda: _perform(show))


def _perform(show: Show) -> int:
    connection = ("--address", show.address)
    with connecting.connect(_parsed(connecting.add_arguments, connection)) as found:
        snapshot = wait_ready(found, show.wait_s)
    print(ready_line(snapshot, show.address), flush=True)
    chosen = show.golden
    if show.prompt is not None and snapshot.model(show.prompt[0]).has_pipeline:
        chosen = show.prompt
    if chosen is None:
        raise UsageError(f"this cluster cannot encode prompts for {show.first_choice}")
    options = ("--model", *chosen, *connection)
    return sample.run(_parsed(sample.add_arguments, options))


def _plan(args: argparse.Namespace, models: Path, address: str, spans: Path) -> Show:
    """What to show, its models linked into the folder `models`. Raises UsageError."""
    common = ("--out", str(args.out / "demo.png"), "--trace-file", str(spans))
    model = args.model or _PROMPT_MODEL
    prompt = golden = None
    if args.golden is None and (args.prompt is not None or (model / "model_index.json").is_file()):
        width, height = args.size or sample.size(_PROMPT_SIZE)
        job = ("--prompt", args.prompt or _PROMPT, "--size", f"{width}x{height}")
        seed = ("--seed", str(args.seed))
        prompt = (_link(models, model), *job, *seed, *common)
    if args.prompt is None:
        checkpoint = _GOLDEN_MODEL if prompt or args.model is None else args.model
        case = args.golden or _GOLDEN
        if case.is_file() and checkpoint.exists():
            golden = (_link(models, checkpoint), "--golden", str(case), *common)
    if prompt is None and golden is None:
        raise UsageError(
            f"there is nothing to show: neither {model} nor {args.golden or _GOLDEN} is here; run "
            "it in the root of the repository, or give --model with --prompt or --golden"
        )
    return Show(address, args.wait, prompt, golden)


def _link(models: Path, path: Path) -> str:
    """Make a model part of the folder; its name there. Raises UsageError when there is none."""
    if not path.exists():
        raise UsageError(f"--model {path}: no such file or folder")
    link = models / path.resolve().name
    link.symlink_to(path.resolve())
    return link.stem if path.is_file() else link.name


def _client_trace(spans: Path) -> str | None:
    """The trace that the client began last, if it began any."""
    found = None
    if spans.is_file():
        for line in spans.read_text(encoding="utf-8").splitlines():
            span = json.loads(line)
            found = span["trace_id"] if span["service"] == "client" else found
    return found


def _parsed(
    add: Callable[[argparse.ArgumentParser], None], options: Sequence[str]
) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args(options)
