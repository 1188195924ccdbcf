"""Exit codes and the lines that go with them."""

from __future__ import annotations

import pytest

from ditmesh.cli import main
from ditmesh.cli.exit_codes import UsageError, described, exit_code, guarded
from ditmesh.errors import (
    DamagedModel,
    DeadlineExceeded,
    DitmeshError,
    Draining,
    GroupLost,
    InternalError,
    InvalidTensor,
    JobCancelled,
    Overloaded,
    Unauthenticated,
    UnknownModel,
    by_reason,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InternalError("x"), 1),
        (RuntimeError("x"), 1),
        (UsageError("x"), 2),
        (InvalidTensor("x"), 3),
        (UnknownModel("x"), 4),
        (Draining("x"), 5),
        (Overloaded("x"), 5),
        (DeadlineExceeded("x"), 6),
        (GroupLost("x"), 7),
        (Unauthenticated("x"), 8),
        (DamagedModel("x"), 9),
        (FileNotFoundError("x"), 9),
        (JobCancelled("x"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_codes(error: BaseException, code: int) -> None:
    """Each kind of failure has its code, subclasses with their parents."""
    assert exit_code(error) == code


def test_every_error_has_a_described_code() -> None:
    """Only defects end with 1; all other codes stand in --help."""
    for reason, kind in by_reason().items():
        code = exit_code(kind("x"))
        assert f"\n  {code} " in described()
        assert (code == 1) == (kind in (DitmeshError, InternalError)), reason


def test_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A failure is one line on stderr, without a traceback."""

    def fail() -> int:
        raise UnknownModel("unknown model 'x'; this cluster serves: flux")

    assert guarded(fail) == 4
    said = capsys.readouterr()
    assert said.err == "ditmesh: error: unknown model 'x'; this cluster serves: flux\n"
    assert said.out == ""


def test_files_and_defects_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """A file's error names the file, a defect its kind."""

    def missing() -> int:
        open("/nonexistent/out.png")  # noqa: SIM115 # it does not open
        return 0

    assert guarded(missing) == 9
    assert capsys.readouterr().err == (
        "ditmesh: error: /nonexistent/out.png: No such file or directory\n"
    )
    assert guarded(lambda: 1 // 0) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_debug_raises() -> None:
    """With --debug the traceback is the user's."""
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 // 0, debug=True)


@pytest.mark.parametrize(
    "command",
    [["--help"], *([name, "--help"] for name in ("up", "sample", "status", "trace", "demo"))],
)
def test_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Every command explains itself and its exit codes."""
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0
    assert "exit codes:" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["dance"],
        ["sample"],
        ["sample", "--prompt", "a", "--cond", "b"],
        ["sample", "--prompt", "a", "--size", "0x64"],
        ["sample", "--prompt", "a", "--size", "64"],
        ["sample", "--prompt", "a", "--seed", "-1"],
        ["sample", "--prompt", "a", "--fallback", "perhaps"],
        ["up", "--nodes", "many"],
        ["up", "--port", "70000"],
    ],
)
def test_wrong_options(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What argparse can see is refused with code 2, before anything starts."""
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
