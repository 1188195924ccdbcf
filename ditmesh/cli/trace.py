"""`ditmesh trace`: a recorded trace as a readable tree."""

from __future__ import annotations

import argparse
from pathlib import Path

from ditmesh import telemetry
from ditmesh.cli.exit_codes import UsageError

HELP = "show a recorded trace as a tree"
DESCRIPTION = "Shows one trace of a file that --trace-file wrote: who did what, when, for how long."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument("file", type=Path, help="JSON lines, one a span")
    parser.add_argument(
        "trace_id", nargs="?", help="32 hexadecimal digits (default: the trace that began last)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the trace. Raises OSError for a file that cannot be read, UsageError without trace."""
    print(render(args.file, args.trace_id), end="")
    return 0


def render(file: Path, trace_id: str | None) -> str:
    """The trace as text. Raises as `run`."""
    try:
        found = trace_id or telemetry.latest_trace_id(file)
        if found is None:
            raise UsageError(f"{file} holds no span")
        return telemetry.render_trace(file, found.lower())
    except (ValueError, KeyError) as error:
        raise UsageError(f"{file} is no file of spans: {error}") from error
    except LookupError as error:
        raise UsageError(str(error)) from error
