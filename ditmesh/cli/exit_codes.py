"""What becomes of a command's failure: one line for people, one exit code for scripts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Final

from ditmesh import errors

USAGE: Final = 2
INTERRUPTED: Final = 130


class UsageError(Exception):
    """The command line asks for something that cannot be; the message says what would be right."""


_KINDS: Final[tuple[tuple[int, str, tuple[type[BaseException], ...]], ...]] = (
    (USAGE, "wrong options", (UsageError,)),
    (
        3,
        "the server refused the request",
        (errors.InvalidRequest, errors.InvalidMesh, errors.JobExists),
    ),
    (4, "no such model or job", (errors.UnknownModel, errors.UnknownJob)),
    (5, "unreachable, or not able to take work now", (errors.Unavailable, errors.Overloaded)),
    (6, "the time was over", (errors.DeadlineExceeded,)),
    (7, "the cluster failed at the job", (errors.ExecutorFailed, errors.StaleEpoch)),
    (8, "wrong credentials", (errors.Unauthenticated,)),
    (9, "a file, folder or port cannot be used", (errors.DamagedModel, OSError)),
    (INTERRUPTED, "cancelled, such as by Ctrl-C", (errors.JobCancelled, KeyboardInterrupt)),
)
_DEFECT: Final = 1


def exit_code(error: BaseException) -> int:
    """The exit code for an error."""
    for code, _, kinds in _KINDS:
        if isinstance(error, kinds):
            return code
    return _DEFECT


def described() -> str:
    """All of them, for --help."""
    lines = ["exit codes:", "  0    success", f"  {_DEFECT}    a defect of ditmesh"]
    lines += [f"  {code:<4} {text}" for code, text, _ in _KINDS]
    return "\n".join(lines)


def guarded(command: Callable[[], int], *, debug: bool = False) -> int:
    """The exit code of a command. Errors become one line on stderr, unless `debug`."""
    try:
        return command()
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        print(f"ditmesh: error: {_sentence(error)}", file=sys.stderr)
        return exit_code(error)


def _sentence(error: Exception) -> str:
    if isinstance(error, (errors.DitmeshError, UsageError)):
        return str(error)
    if isinstance(error, OSError):
        named = error.filename is not None
        return f"{error.filename}: {error.strerror}" if named else str(error)
    return f"{type(error).__name__}: {error} (--debug shows more)"
