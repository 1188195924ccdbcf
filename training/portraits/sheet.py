"""Draws a sheet of prompts: ``python -m training.portraits.sheet``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FluxPipeline
from PIL import Image

from training.portraits.paths import DEFAULT_MODEL, DEFAULT_SHEET
from training.portraits.tokenization import T5_LENGTH

SIZE = 128
STEPS = 20

PROMPTS = (
    "a girl",
    "a girl with long red hair and glasses, green shirt, blue background",
    "a man with a beard and a hat",
    "a boy",
    "a woman with pink hair in pigtails, white shirt, purple background",
    "a man with short black hair and sunglasses wearing a red shirt on a yellow background",
    "a boy with spiky green hair, orange sweater, pink background",
    "a woman with a blonde bob, dark skin, blue dress, white background",
    "portrait of a girl with blue hair and a red beanie, black t-shirt, grey background",
    "a smiling man with a brown beard, checked yellow shirt, green background",
    "a sad girl with a black braid, purple shirt, orange background",
    "a guy with grey hair and glasses, striped blue shirt, red background",
    "woman, brown hair, sunglasses, pink top, blue background, pixel art",
    "boy, blonde hair, blue cap, green t-shirt, white background",
    "a surprised lady with long black hair, brown skin, yellow dress, pink background",
    "a man with a purple top hat and a beard, white shirt, grey background",
    "pixel art of a girl with green hair and glasses, dressed in red, on a purple background",
    "a young boy with red hair and blue eyes, white sweater, green background",
    "a woman with long grey hair, tan skin and a black shirt on an orange background",
    "a man with short blonde hair, dark skin, a smile, purple t-shirt, yellow background",
    "a girl with brown pigtails and a striped pink shirt, white background",
    "a boy with black hair and glasses, checked green shirt, blue background",
    "a lady with a red bob and sunglasses, white top, red background",
    "a man with pink hair and a pink beard, orange shirt, grey background",
    "a frowning boy with blue hair, red shirt, yellow background",
    "a girl in a yellow dress with long blonde hair on a green background",
    "a woman with a green cap and long brown hair, black sweater, pink background",
    "a man with spiky grey hair, dark skin, blue shirt, orange background",
    "an 8-bit portrait of a woman with blue hair, light skin and green eyes, orange clothes",
    "a male with red hair, sunglasses and a beard, green shirt, purple background",
    "a girl with no glasses, white background",
    "",
)


def generate(
    pipeline: FluxPipeline,
    prompts: Sequence[str],
    seed: int,
    steps: int = STEPS,
    batch: int = 32,
    length: int = T5_LENGTH,
    true_cfg_scale: float = 1.0,
) -> list[Image.Image]:
    """Draws 128x128 pictures; picture i starts from the noise of seed + i."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        generators = [
            torch.Generator().manual_seed(seed + start + index) for index in range(len(part))
        ]
        guided = {"negative_prompt": [""] * len(part)} if true_cfg_scale > 1 else {}
        pictures += pipeline(
            prompt=part,
            height=SIZE,
            width=SIZE,
            num_inference_steps=steps,
            max_sequence_length=length,
            generator=generators,
            true_cfg_scale=true_cfg_scale,
            **guided,
        ).images
    return pictures


def contact_sheet(pictures: Sequence[Image.Image], columns: int = 8, gap: int = 4) -> Image.Image:
    """Puts pictures of 128x128 side by side."""
    rows = -(-len(pictures) // columns)
    pitch = SIZE + gap
    sheet = Image.new("RGB", (columns * pitch + gap, rows * pitch + gap), "#202024")
    for index, picture in enumerate(pictures):
        row, column = divmod(index, columns)
        sheet.paste(picture, (gap + column * pitch, gap + row * pitch))
    return sheet


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw a sheet of 32 prompts with the model.")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="diffusers folder")
    parser.add_argument("--out", type=Path, default=DEFAULT_SHEET)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--length", type=int, default=T5_LENGTH, help="text tokens of a prompt")
    args = parser.parse_args(argv)
    pipeline = FluxPipeline.from_pretrained(args.model)
    pipeline.set_progress_bar_config(disable=True)
    pictures = generate(pipeline, PROMPTS, args.seed, args.steps, length=args.length)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(pictures).save(args.out, optimize=True)
    print(f"{args.out}: {len(pictures)} pictures")


if __name__ == "__main__":
    main()
