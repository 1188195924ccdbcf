"""Renders the data set: ``python -m training.portraits.generate``.

Writes ``train.npz`` and ``held_out.npz``, each with ``pictures`` (uint8 [N, 16, 16, 3], one value
per cell) and ``attributes`` (N JSON strings). Node renders; the attributes are drawn here.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from training.portraits.attributes import GRID, Attributes, draw_split
from training.portraits.paths import DEFAULT_DATA

HERE = Path(__file__).parent
TRAIN_COUNT = 40_000
HELD_OUT_COUNT = 1_000


class RendererError(RuntimeError):
    """Node or one of the renderer's packages is missing, or rendering failed."""


def ensure_packages() -> None:
    """Installs the renderer's npm packages once, at the versions of the lock file."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise RendererError("node and npm are needed to render the portraits")
    if not (HERE / "node_modules").is_dir():
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=HERE, check=True)


def render(portraits: Sequence[Attributes]) -> npt.NDArray[np.uint8]:
    """Renders portraits to uint8 [N, 16, 16, 3]."""
    size = GRID * GRID * 3
    with subprocess.Popen(
        ["node", "render.mjs"], cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as node:
        stdin, stdout = node.stdin, node.stdout
        assert stdin is not None
        assert stdout is not None

        def feed() -> None:
            for attributes in portraits:
                stdin.write(json.dumps(attributes.options()).encode() + b"\n")
            stdin.close()

        feeder = threading.Thread(target=feed, daemon=True)
        feeder.start()
        chunks: list[bytes] = []
        for _ in tqdm(portraits, desc="render", unit="portrait"):
            chunk = stdout.read(size)
            if len(chunk) != size:
                raise RendererError(f"the renderer stopped after {len(chunks)} portraits")
            chunks.append(chunk)
        feeder.join()
    return np.frombuffer(b"".join(chunks), np.uint8).reshape(-1, GRID, GRID, 3)


def write_split(path: Path, count: int, seed: int, want_held_out: bool) -> None:
    """Draws, renders and writes one split."""
    portraits = draw_split(count, seed, want_held_out)
    attributes = np.array([json.dumps(portrait.to_dict()) for portrait in portraits])
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, pictures=render(portraits), attributes=attributes)


def generate(data: Path, train_count: int, held_out_count: int, seed: int) -> None:
    """Writes both splits into ``data``."""
    ensure_packages()
    write_split(data / "held_out.npz", held_out_count, seed + 1, want_held_out=True)
    write_split(data / "train.npz", train_count, seed, want_held_out=False)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Render the portraits that the model learns from.")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="folder to write")
    parser.add_argument("--train", type=int, default=TRAIN_COUNT, help="portraits to train on")
    parser.add_argument("--held-out", type=int, default=HELD_OUT_COUNT, help="portraits held out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    generate(args.data, args.train, args.held_out, args.seed)


if __name__ == "__main__":
    main()
