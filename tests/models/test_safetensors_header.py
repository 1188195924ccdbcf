"""The header reader against the library's own files, and against every kind of damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from ditmesh.errors import DamagedModel
from ditmesh.models.safetensors_file import read_header


def write(path: Path, header: Any, body: bytes = b"", length: int | None = None) -> Path:
    """A file with any header at all."""
    text = json.dumps(header).encode()
    path.write_bytes((length or len(text)).to_bytes(8, "little") + text + body)
    return path


def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_what_the_library_wrote(tmp_path: Path) -> None:
    """Names, dtypes, shapes, metadata and byte positions are those of the safetensors library."""
    path = tmp_path / "a.safetensors"
    tensors = {
        "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "a": torch.ones(3, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4, dtype=torch.float16),
        "scalar": torch.tensor(7.0),
    }
    save_file(tensors, path, metadata={"made": "by hand"})
    found, metadata = read_header(path)
    assert metadata == {"made": "by hand"}
    assert {name: (t.dtype, t.shape) for name, t in found.items()} == {
        "a": ("BF16", (3,)),
        "b": ("F32", (2, 3)),
        "empty": ("F16", (0, 4)),
        "scalar": ("F32", ()),
    }
    stored = found["b"]
    raw = path.read_bytes()[stored.offset : stored.offset + stored.nbytes]
    assert raw == tensors["b"].numpy().tobytes()


@pytest.mark.parametrize(
    ("header", "body", "words"),
    [
        ({"a": entry()}, b"123", "truncated: "),
        ({"a": entry()}, b"12345", "1 bytes more"),
        ({"a": entry(shape=(2,))}, b"1234", "holds 4 bytes"),
        ({"a": entry(shape=(-1,))}, b"1234", "impossible"),
        ({"a": entry(offsets=(4, 0))}, b"1234", "impossible"),
        ({"a": entry(dtype="C64", shape=(), offsets=(0, 8))}, b"12345678", "dtype C64"),
        ({"a": entry(), "b": entry()}, b"1234", "out of place"),
        ({"a": entry(offsets=(4, 8))}, b"12345678", "out of place"),
        ({"a": {"dtype": "F32"}}, b"", "malformed"),
        ({"a": entry(offsets=7)}, b"", "malformed"),
        ({"a": [1]}, b"", "malformed"),
        ([1, 2], b"", "not an object"),
    ],
)
def test_damage_is_named(tmp_path: Path, header: Any, body: bytes, words: str) -> None:
    """Each kind of damage is refused with the file's name and what is wrong."""
    path = write(tmp_path / "damaged.safetensors", header, body)
    with pytest.raises(DamagedModel, match=words) as caught:
        read_header(path)
    assert str(path) in caught.value.message


def test_headers_that_lie_about_their_length(tmp_path: Path) -> None:
    """A length beyond the file, beyond all sense, or cut short is refused; nothing is allocated."""
    header = {"a": entry()}
    for length, words in ((10**6, "inside its header"), (2**62, "not a safetensors"), (5, "JSON")):
        path = write(tmp_path / "lying.safetensors", header, b"1234", length)
        with pytest.raises(DamagedModel, match=words):
            read_header(path)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    """A file that is not there, or holds nothing, is damaged too."""
    with pytest.raises(DamagedModel, match="cannot be read"):
        read_header(tmp_path / "absent.safetensors")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(DamagedModel, match="too short"):
        read_header(tmp_path / "empty.safetensors")


@given(content=st.binary(max_size=200), declared=st.integers(0, 300))
def test_no_bytes_get_anything_but_damaged_model(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, declared: int
) -> None:
    """Whatever the bytes, the reader returns tensors inside the file or raises DamagedModel."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(declared.to_bytes(8, "little") + content)
    try:
        tensors, _ = read_header(path)
    except DamagedModel:
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) <= len(content)
