"""Jobs, conditioning and traces from files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from ditmesh.cli import main
from ditmesh.cli.exit_codes import UsageError
from ditmesh.cli.job_files import read_conditioning, read_golden
from ditmesh.cli.tensor_files import read_tensors
from ditmesh.client import FLUX
from ditmesh.client.job import build_job
from ditmesh.errors import DamagedModel
from ditmesh.tensors import DataType

GOLDEN = Path(__file__).parent.parent / "golden"


def write(path: Path, tensors: dict[str, tuple[str, list[int], bytes]], **metadata: str) -> Path:
    """A safetensors file by hand."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    body = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def f32(shape: list[int], value: float = 1.0) -> tuple[str, list[int], bytes]:
    """A constant tensor for `write`."""
    return "F32", shape, np.full(shape, value, np.float32).tobytes()


def test_bf16_stays(tmp_path: Path) -> None:
    """A bf16 tensor is sent as it is stored, not widened."""
    stored = np.array([0x3F80, 0xC000], np.uint16).tobytes()
    tensors, metadata = read_tensors(write(tmp_path / "f", {"t": ("BF16", [2], stored)}, a="[1]"))
    assert tensors["t"].spec.data_type is DataType.BF16
    np.testing.assert_array_equal(tensors["t"].numpy(), [1.0, -2.0])
    assert metadata == {"a": [1]}


def test_unknown_type(tmp_path: Path) -> None:
    """A type that does not travel is refused with those that do."""
    path = write(tmp_path / "f", {"t": ("F64", [1], bytes(8))})
    with pytest.raises(DamagedModel, match="'t' is F64; use F32, F16, BF16, U8, I64"):
        read_tensors(path)


def test_golden_case() -> None:
    """A golden case becomes ComfyUI's job in model space; its own latent is no difference."""
    case = read_golden(GOLDEN / "flux_dpmpp_2m_beta_n8_cfg3_d0.6_b1_16x16.safetensors", "tiny")
    spec = build_job(case.options).spec
    assert (spec.model, spec.sampler, spec.cfg) == ("tiny", "dpmpp_2m", 3.0)
    named = spec.schedule.named
    assert (named.scheduler, named.steps, named.denoise) == ("beta", 8, 0.6)
    assert list(spec.positive.guidance) == [3.5]
    assert spec.noise.WhichOneof("kind") == "seeded"
    in_model_space = FLUX.to_model_space(case.expected)
    assert case.difference(in_model_space) < 1e-5
    assert case.difference(in_model_space + np.float32(0.3611)) == pytest.approx(1.0, abs=1e-4)


def test_what_is_no_golden_case(tmp_path: Path) -> None:
    """A file that lacks a part of a case says which."""
    with pytest.raises(UsageError, match="no golden case: it lacks 'guidance'"):
        read_golden(write(tmp_path / "f", {"positive": f32([1, 2, 3])}), "tiny")


def test_conditioning_file(tmp_path: Path) -> None:
    """Tensors by name, guidance from the metadata unless it is given."""
    path = write(
        tmp_path / "f",
        {"positive": f32([1, 2, 3]), "pooled_positive": f32([1, 4]), "negative": f32([1, 5, 3])},
        guidance="2.5",
    )
    positive, negative = read_conditioning(path, None)
    assert {name: t.spec.shape for name, t in positive.wire.items()} == {
        "text": (1, 2, 3),
        "pooled": (1, 4),
    }
    assert positive.guidance == 2.5
    assert negative is not None
    assert negative.pooled is None
    assert read_conditioning(path, 4.0)[0].guidance == 4.0


def test_conditioning_without_positive(tmp_path: Path) -> None:
    """A file of other tensors says what it holds."""
    with pytest.raises(UsageError, match="no tensor named positive, but: text"):
        read_conditioning(write(tmp_path / "f", {"text": f32([1])}), None)


def span(trace_id: str, start: int) -> str:
    """One line of a file of spans."""
    fields = {
        "trace_id": trace_id,
        "span_id": f"{start:016x}",
        "parent_span_id": None,
        "name": "job",
        "service": "coordinator",
        "instance": "",
        "start_unix_ns": start,
        "end_unix_ns": start + 5_000_000,
        "attributes": {},
        "events": [],
        "status": "OK",
        "status_message": "",
    }
    return json.dumps(fields) + "\n"


def test_trace_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The newest trace, or the one that is asked for in either case."""
    file = tmp_path / "spans.jsonl"
    file.write_text(span("a" * 32, 1) + span("b" * 32, 2))
    assert main(["trace", str(file)]) == 0
    assert f"trace {'b' * 32}" in capsys.readouterr().out
    assert main(["trace", str(file), "A" * 32]) == 0
    assert "coordinator" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "trace_id", "code", "words"),
    [
        (None, [], 9, "No such file"),
        ("", [], 2, "holds no span"),
        (span("a" * 32, 1), ["c" * 32], 2, "no span of trace"),
        ("not json\n", [], 2, "no file of spans"),
    ],
)
def test_trace_that_is_not_there(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    trace_id: list[str],
    code: int,
    words: str,
) -> None:
    """Each way in which there is no trace has its line and its code."""
    file = tmp_path / "spans.jsonl"
    if content is not None:
        file.write_text(content)
    assert main(["trace", str(file), *trace_id]) == code
    assert words in capsys.readouterr().err
