"""Adds to the golden bytes what they lack: `python -m tests.wire.record`.

What is there already is never changed: those bytes may lie in a journal, or come from a client
that nobody updates.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from ditmesh.errors import by_reason
from ditmesh.rpc_status import to_status_bytes
from tests.wire.filled import FILES, filled, message_types

GOLDEN = Path(__file__).with_name("golden.json")
ERRORS = Path(__file__).with_name("errors.json")
METHODS = Path(__file__).with_name("methods.json")


def values(message: Message) -> dict[str, Any]:
    """All that a message says, under the names and in the form of JSON."""
    return MessageToDict(message, preserving_proto_field_name=True)


def load() -> dict[str, dict[str, Any]]:
    """The golden messages by name: type, bytes as hexadecimal digits, values."""
    golden: dict[str, dict[str, Any]] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    return golden


def record() -> None:
    """Add what is new: a message of a new type, or of one that has other fields by now."""
    golden = load()
    for kind in message_types():
        for name, message in filled(kind):
            data = message.SerializeToString(deterministic=True)
            entry = {"type": kind.full_name, "bytes": data.hex(), "values": values(message)}
            if not any(known["bytes"] == entry["bytes"] for known in _of(name, golden)):
                key = name if name not in golden else f"{name}@{_short(data)}"
                golden[key] = entry
    GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True, ensure_ascii=False) + "\n")

    errors = json.loads(ERRORS.read_text()) if ERRORS.exists() else {}
    for reason, kind in by_reason().items():
        error = kind("Zu groß 😀", field="job.tensors[3]", retry_after_s=2.5)
        errors.setdefault(reason, to_status_bytes(error).hex())
    ERRORS.write_text(json.dumps(errors, indent=1, sort_keys=True) + "\n")
    known = json.loads(METHODS.read_text()) if METHODS.exists() else {}
    METHODS.write_text(json.dumps(methods() | known, indent=1, sort_keys=True) + "\n")


def methods() -> dict[str, str]:
    """Every call by its path: what goes in and out, and which of it is a stream."""
    return {
        f"/{service.full_name}/{method.name}": (
            f"{'stream ' * method.client_streaming}{method.input_type.full_name} -> "
            f"{'stream ' * method.server_streaming}{method.output_type.full_name}"
        )
        for file in FILES
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def _of(name: str, golden: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [entry for key, entry in golden.items() if key.partition("@")[0] == name]


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:8]


if __name__ == "__main__":
    record()
