"""How ranks run transformers: options that could not run are refused before anything starts."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from ditmesh.errors import InvalidRequest
from ditmesh.supervisor import MISCONFIGURED
from gpu_node import app, node
from gpu_node.execution import Execution

MODELS = Path(__file__).parents[2] / "models"


def _parsed(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    app.add_arguments(parser)
    return parser.parse_args(["--models", str(MODELS), *options])


def test_options_reach_every_rank(tmp_path: Path) -> None:
    """The defaults are torch's own ways, in bf16 on a GPU and fp32 on a CPU."""
    args = _parsed("--device", "cuda", "--fp8-weights", "--compile", "--attention", "cudnn")
    specs = app.children(args, tmp_path)
    assert specs[0].args.execution == Execution("bf16", True, "cudnn", True)
    specs = app.children(_parsed("--device", "cpu", "--ranks", "2"), tmp_path)
    assert specs[1].args.execution == Execution("fp32", False, "auto", False)
    set_by_variables = _parsed("--device=cuda", "--fp8-weights=on", "--compile=off")
    assert app.execution(set_by_variables) == Execution("bf16", True, "auto", False)
    with pytest.raises(SystemExit):
        _parsed("--compile=perhaps")
    assert app.problem(_parsed("--device", "cuda")) == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--attention", "cudnn"], "--attention cudnn: it is for GPUs; on a CPU there are auto, "),
        (["--attention", "flash3"], "--attention flash3: it is for GPUs"),
        (["--fp8-weights", "--dtype", "fp16"], "--fp8-weights: sums would overflow fp16"),
    ],
)
def test_what_cannot_run_is_refused_with_words(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing starts, the exit code is that of a wrong option."""
    assert app.main(["--models", str(MODELS), "--device", "cpu", *options]) == 2
    assert f"error: {words}" in capsys.readouterr().err


def _refuse(execution: Execution, *device: object) -> None:
    if execution.attention != "auto":
        raise InvalidRequest(f"--attention {execution.attention}: this GPU is too old for it")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--attention", "math"], "--attention math: this GPU is too old for it"),
        (["--host", "0.0.0.0"], "can be reached from other machines"),
    ],
)
def test_what_only_a_rank_finds_out_is_not_tried_again(
    options: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It says why, and tells its supervisor that to start it again would not help."""
    monkeypatch.setattr(node.runtime, "prepare", lambda device_type: None)
    monkeypatch.setattr(node.runtime, "check", _refuse)
    (spec,) = app.children(_parsed("--device", "cpu", *options), tmp_path)
    assert node.run(spec.args) == MISCONFIGURED
    assert words in caplog.text


def test_a_kernel_that_is_not_installed_is_named() -> None:
    """Which package is missing, nested ones included."""
    assert Execution(attention="flash3").problem("cuda") == (
        "--attention flash3: the package flash_attn_interface is not installed"
    )
    assert "flash_attn.cute is not installed" in Execution(attention="flash4").problem("cuda")
    with pytest.raises(SystemExit):
        _parsed("--attention", "sage")


def test_compiling_needs_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One that is named in CC, or one of the usual ones."""
    compiling = Execution(compile=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert compiling.problem("cuda") == (
        "--compile: it needs a C compiler, and there is no cc or gcc or clang on the PATH; "
        "install gcc, or leave --compile out"
    )
    compiler = tmp_path / "other"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CC", "other")
    assert compiling.problem("cuda") == ""
    assert Execution().problem("cuda") == ""
