"""A supervisor in a process of its own, and its children, seen from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.supervisor.targets import WAIT_S

REPOSITORY = Path(__file__).parents[2]


class Driver:
    """A supervisor in a process of its own, and the lines that it and its children write."""

    def __init__(self, *children: dict[str, Any], **options: Any) -> None:
        text = json.dumps({"children": children, **options})
        program = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "from tests.supervisor.targets import drive; drive(sys.argv[1])"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, text],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []

    def read_until(self, found: Callable[[list[str]], bool]) -> None:
        """Reads lines until they satisfy `found`; fails when the output ends before."""
        assert self.process.stdout is not None
        while not found(self.lines):
            line = self.process.stdout.readline()
            assert line, f"output ended: {self.lines}, {self.process.stderr.read()}"  # type: ignore[union-attr]
            self.lines.append(line.rstrip("\n"))

    def read_words(self, word: str, count: int = 1) -> list[list[str]]:
        """The words of all lines that begin with `word`, once there are `count`."""

        def matching(lines: list[str]) -> list[list[str]]:
            return [line.split()[1:] for line in lines if line.split()[0] == word]

        self.read_until(lambda lines: len(matching(lines)) >= count)
        return matching(self.lines)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind so far."""
        parsed = [json.loads(line[6:]) for line in self.lines if line.startswith("event ")]
        return [event for event in parsed if event["kind"] == kind]

    def finish(self) -> tuple[int, str]:
        """Waits for the end; exit code and stderr."""
        out, err = self.process.communicate(timeout=WAIT_S)
        self.lines += out.splitlines()
        return self.process.returncode, err


def child(name: str, function: str, args: object = None, **more: object) -> dict[str, Any]:
    return {"name": name, "target": f"tests.supervisor.targets:{function}", "args": args, **more}


def gone(pid: int) -> bool:
    """Whether a process is no more, or is a zombie that nobody waits for."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
