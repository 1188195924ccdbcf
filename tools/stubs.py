"""Generates `ditmesh/v1` from `proto/`; with --check, tells whether it is up to date."""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import io
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "ditmesh" / "v1"


def generate(folder: Path) -> None:
    """Write modules and type stubs for every proto file below `folder`. Raises RuntimeError."""
    protos = sorted((ROOT / "proto" / "ditmesh" / "v1").glob("*.proto"))
    typed = Path(sys.executable).parent / "protoc-gen-mypy_grpc"
    arguments = [
        "protoc",
        f"-I{ROOT / 'proto'}",
        f"-I{files('grpc_tools') / '_proto'}",
        f"--python_out={folder}",
        f"--pyi_out={folder}",
        f"--grpc_python_out={folder}",
        f"--plugin=protoc-gen-mypy_grpc={typed}",
        f"--mypy_grpc_out=quiet:{folder}",
        *map(str, protos),
    ]
    with contextlib.redirect_stderr(io.StringIO()) as words:
        if protoc.main(arguments) != 0:
            raise RuntimeError(f"protoc failed: {words.getvalue()}")


def drift(fresh: Path) -> list[str]:
    """Names of the files that differ, or that only one side has."""
    made = {path.name for path in fresh.iterdir()}
    kept = {path.name for path in TARGET.iterdir() if path.suffix in (".py", ".pyi")}
    kept.discard("__init__.py")
    common = made & kept
    differing = set(filecmp.cmpfiles(fresh, TARGET, common, shallow=False)[1])
    return sorted(differing | (made ^ kept))


def main() -> int:
    """Generate, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail on drift")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        differing = drift(Path(folder) / "ditmesh" / "v1")
    for name in differing:
        print(f"ditmesh/v1/{name} is not what proto/ gives; run `make stubs`", file=sys.stderr)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
