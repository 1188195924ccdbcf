"""The commands, and what becomes of their errors."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ditmesh import __version__
from ditmesh.cli import demo, sample, status, trace, up
from ditmesh.cli.exit_codes import described, guarded

_COMMANDS = (up, sample, status, trace, demo)


def build_parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(
        prog="ditmesh",
        description="Samples diffusion transformers on a group of GPUs.",
        epilog=described(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ditmesh {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        command = commands.add_parser(
            module.__name__.rpartition(".")[2],
            help=module.HELP,
            description=module.DESCRIPTION,
            epilog=described(),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Errors become one line on stderr."""
    args = build_parser().parse_args(argv)
    return guarded(lambda: int(args.run(args)), debug=args.debug)
