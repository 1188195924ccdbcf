"""Tensors of a safetensors file, as they travel; bf16 stays bf16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ditmesh.errors import DamagedModel
from ditmesh.models.safetensors_file import read_header
from ditmesh.tensors import DataType, TensorSpec, WireTensor

_TYPES = {t.name: t for t in DataType}


def read_tensors(path: Path) -> tuple[dict[str, WireTensor], dict[str, Any]]:
    """The file's tensors by name, and its metadata, each value read as JSON where it is.

    Raises DamagedModel for a file that is not what it should be, or has a type that does not
    travel.
    """
    stored, metadata = read_header(path)
    tensors = {}
    with path.open("rb") as file:
        for name, entry in stored.items():
            data_type = _TYPES.get(entry.dtype)
            if data_type is None:
                raise DamagedModel(
                    f"{path}: tensor {name!r} is {entry.dtype}; use {', '.join(_TYPES)}"
                )
            file.seek(entry.offset)
            spec = TensorSpec(data_type, entry.shape)
            tensors[name] = WireTensor(spec, file.read(entry.nbytes))
    return tensors, {key: _value(text) for key, text in metadata.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
