"""Generates `docs/protocol.md` from the comments in `proto/`; with --check, tells of drift."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "protocol.md"
PACKAGE = ".ditmesh.v1."
# In the order in which a reader wants them: what is called first, what is sent later.
FILES = ("cluster", "pipeline", "sampler", "job", "tensor", "node")
_INTRODUCTION = """\
# Protocol reference

Generated from the comments in [`proto/ditmesh/v1`](../proto/ditmesh/v1) by
`tools/protocol_docs.py`; change it there. [Calling it from any language](clients.md) tells how to
use it, [errors](errors.md) what can go wrong, [compatibility](compatibility.md) what will not
change.
"""

_Path = tuple[int, ...]


def read_protos() -> dict[str, FileDescriptorProto]:
    """The parsed files by name, with their comments. Raises RuntimeError."""
    protos = [str(ROOT / "proto" / "ditmesh" / "v1" / f"{name}.proto") for name in FILES]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "descriptors"
        arguments = [
            "protoc",
            f"-I{ROOT / 'proto'}",
            f"-I{files('grpc_tools') / '_proto'}",
            "--include_source_info",
            f"--descriptor_set_out={output}",
            *protos,
        ]
        if protoc.main(arguments) != 0:
            raise RuntimeError("protoc failed")
        parsed = FileDescriptorSet.FromString(output.read_bytes())
    return {Path(file.name).stem: file for file in parsed.file}


class Page:
    """The part of the page that is about one file."""

    def __init__(self, file: FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(place.path): " ".join(place.leading_comments.split())
            for place in file.source_code_info.location
        }
        self._syntax = next(
            " ".join(" ".join(place.leading_detached_comments).split())
            for place in file.source_code_info.location
            if tuple(place.path) == (FileDescriptorProto.SYNTAX_FIELD_NUMBER,)
        )

    def lines(self) -> Iterator[str]:
        """Its Markdown."""
        yield from ("", f"## {Path(self._file.name).name}", "", self._syntax)
        for index, service in enumerate(self._file.service):
            yield from self._service(service, (FileDescriptorProto.SERVICE_FIELD_NUMBER, index))
        for index, message in enumerate(self._file.message_type):
            yield from self._message(
                message, (FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER, index)
            )
        for index, enum in enumerate(self._file.enum_type):
            yield from self._enum(enum, (FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER, index))

    def _service(self, service: ServiceDescriptorProto, path: _Path) -> Iterator[str]:
        yield from self._heading("service", service.name, path)
        yield from ("| call | request | answer | |", "|---|---|---|---|")
        for index, method in enumerate(service.method):
            request = _stream(method.client_streaming) + _link(method.input_type)
            answer = _stream(method.server_streaming) + _link(method.output_type)
            text = self._text((*path, ServiceDescriptorProto.METHOD_FIELD_NUMBER, index))
            yield f"| `{method.name}` | {request} | {answer} | {text} |"

    def _message(self, message: DescriptorProto, path: _Path) -> Iterator[str]:
        yield from self._heading("message", message.name, path)
        if not message.field:
            yield "No fields."
            return
        maps = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        yield from ("| field | type | number | |", "|---|---|---|---|")
        for index, field in enumerate(message.field):
            text = self._text((*path, DescriptorProto.FIELD_FIELD_NUMBER, index))
            kind = _type(field, maps)
            if field.HasField("oneof_index") and not field.proto3_optional:
                text += f" *(one of `{message.oneof_decl[field.oneof_index].name}`)*"
            yield f"| `{field.name}` | {kind} | {field.number} | {text} |"

    def _enum(self, enum: EnumDescriptorProto, path: _Path) -> Iterator[str]:
        yield from self._heading("enum", enum.name, path)
        yield from ("| value | number | |", "|---|---|---|")
        for index, value in enumerate(enum.value):
            text = self._text((*path, EnumDescriptorProto.VALUE_FIELD_NUMBER, index))
            yield f"| `{value.name}` | {value.number} | {text} |"

    def _heading(self, kind: str, name: str, path: _Path) -> Iterator[str]:
        yield from ("", f"### {name}", "", f"*{kind}* · {self._comments[path]}", "")

    def _text(self, path: _Path) -> str:
        """A comment as it may stand in a table's cell. Raises KeyError for what has none."""
        text = self._comments[path]
        if not text:
            raise KeyError(f"{self._file.name} has something without a comment: {path}")
        for mark in "|*<":
            text = text.replace(mark, f"\\{mark}")
        return text


def _stream(streaming: bool) -> str:
    return "stream of " if streaming else ""


def _type(field: FieldDescriptorProto, maps: dict[str, DescriptorProto]) -> str:
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        key, value = entry.field
        return f"map of {_type(key, {})} to {_type(value, {})}"
    name = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    kind = _link(field.type_name) if field.type_name else name
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    return f"optional {kind}" if field.proto3_optional else kind


def _link(full_name: str) -> str:
    name = full_name.removeprefix(PACKAGE)
    return f"[{name}](#{name.lower()})"


def render() -> str:
    """The whole page."""
    protos = read_protos()
    lines: Sequence[str] = [line for name in FILES for line in Page(protos[name]).lines()]
    return _INTRODUCTION + "\n".join(lines) + "\n"


def main() -> int:
    """Generate, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail on drift")
    page = render()
    if not parser.parse_args().check:
        TARGET.write_text(page)
        return 0
    if TARGET.is_file() and TARGET.read_text() == page:
        return 0
    print(
        "docs/protocol.md is not what proto/ gives; run python tools/protocol_docs.py",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
