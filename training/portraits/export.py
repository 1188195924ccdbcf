"""Writes the diffusers folder of a trained run: ``python -m training.portraits.export``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from ditmesh.models.latents import PREVIEW_FILE
from training.portraits.autoencoder import ColorMap, build_autoencoder
from training.portraits.models import ModelConfig, Trainable, build_pipeline
from training.portraits.parts import load_parts
from training.portraits.paths import DEFAULT_MODEL, DEFAULT_RUN

SIZE_LIMIT = 40 * 2**20


class ExportError(RuntimeError):
    """There is nothing to export, or what came out is not fit to ship."""


def export(run: Path, out: Path, config: ModelConfig) -> None:
    """Writes the running average of a run as a folder for ``FluxPipeline.from_pretrained``."""
    checkpoint = run / "checkpoint.pt"
    if not checkpoint.exists():
        raise ExportError(f"{checkpoint} is missing: train first")
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    parts = load_parts(run)
    model = Trainable(config, parts.clip, parts.t5)
    model.load_state_dict(state["average"])
    pipeline = build_pipeline(
        model.eval(), build_autoencoder(parts.colors), parts.clip, parts.t5, config.shift
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    _name_tokenizer_for_every_version(out)
    _drop_derived_config(out / "vae" / "config.json")
    _write_preview(out / PREVIEW_FILE, parts.colors)
    _check(out)
    print(f"{out}: step {state['step']}, trained for {state['seconds'] / 60:.0f} minutes")


def _name_tokenizer_for_every_version(out: Path) -> None:
    """Writes the T5 tokenizer's class by the name that old and new transformers both know."""
    for path in (out / "model_index.json", out / "tokenizer_2" / "tokenizer_config.json"):
        text = path.read_text().replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"')
        path.write_text(text)


def _drop_derived_config(path: Path) -> None:
    """Leaves out what the autoencoder derives by itself and warns of when it is given."""
    config = json.loads(path.read_text())
    config.pop("block_out_channels", None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def _write_preview(path: Path, colors: ColorMap) -> None:
    """How to see a latent without the autoencoder: its colours, -1 to 1, are linear in it."""
    factors = (2 * colors.to_rgb.T).round(5).tolist()
    bias = (2 * colors.mean - 1).round(5).tolist()
    path.write_text(json.dumps({"rgb_factors": factors, "rgb_bias": bias}) + "\n")


def _check(out: Path) -> None:
    """Refuses a folder that is too large or holds weights that are not safetensors."""
    files = [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    if size > SIZE_LIMIT:
        raise ExportError(f"{out} holds {size / 2**20:.1f} MiB, more than {SIZE_LIMIT / 2**20:.0f}")
    pickles = [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".ckpt", ".pkl"}]
    if pickles:
        raise ExportError(f"{pickles[0]} is not safetensors")
    components = json.loads((out / "model_index.json").read_text())
    for name, value in components.items():
        if isinstance(value, list) and value[0] is not None and not (out / name).is_dir():
            raise ExportError(f"{out / name} is missing")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Write the diffusers folder of a trained run.")
    parser.add_argument("--run", type=Path, default=DEFAULT_RUN, help="folder of the checkpoint")
    parser.add_argument("--out", type=Path, default=DEFAULT_MODEL, help="folder to write")
    args = parser.parse_args(argv)
    export(args.run, args.out, ModelConfig())


if __name__ == "__main__":
    main()
