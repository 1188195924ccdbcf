"""Measures how the model follows prompts: ``python -m training.portraits.evaluate``.

The prompts describe held-out portraits: combinations of hair colour, clothes colour, background
and glasses that training never saw. Each names its hair colour (unless a hat hides the hair),
clothes colour and background; glasses, hats and beards are named whenever they are there. The
checker, which knows only rendered portraits, reads the pictures.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers import FluxPipeline
from PIL import Image

from training.portraits.attributes import Attributes
from training.portraits.captions import caption
from training.portraits.checker import Checker, load_checker
from training.portraits.dataset import Portraits, load
from training.portraits.labels import truth
from training.portraits.paths import DEFAULT_DATA, DEFAULT_MODEL
from training.portraits.sheet import STEPS, contact_sheet, generate
from training.portraits.tokenization import T5_LENGTH

GOALS = {"hair_color": 0.95, "glasses": 0.95, "clothes_color": 0.95, "background": 0.97}
ALWAYS_ASKED = ("hair_color", "glasses", "clothes_color", "background", "hat", "beard")
BARE_PROMPTS = ("a girl", "a woman", "a boy", "a man")
FEMALE_STYLES = ("long", "bob", "pigtails", "braid")


@dataclass(frozen=True)
class Result:
    """How often one attribute came out as asked for."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        """Right answers over questions."""
        return self.right / self.asked if self.asked else float("nan")


def evaluation_prompts(portraits: Portraits, count: int, seed: int) -> list[tuple[str, Attributes]]:
    """``count`` varied captions of held-out portraits, each naming all its colours."""
    rng = random.Random(seed)
    prompts = []
    for attributes in rng.sample(portraits.attributes, count):
        text = ""
        while not names_colors(text, attributes):
            text = caption(attributes, rng)
        prompts.append((text, attributes))
    return prompts


def names_colors(text: str, attributes: Attributes) -> bool:
    """Whether a caption names the colours of hair (if in sight), clothes and background."""
    words = Counter(text.lower().replace(",", " ").replace(".", " ").split())
    needed = Counter([attributes.clothes_color, attributes.background])
    if not attributes.hair_hidden:
        needed[attributes.hair_color] += 1
    if attributes.hat != "none":
        words[attributes.hat_color] -= 1
    if attributes.beard and f"{attributes.hair_color} beard" in text.lower():
        words[attributes.hair_color] -= 1
    if attributes.glasses == "none" and f"{attributes.eyes_color} eyes" in text.lower():
        words[attributes.eyes_color] -= 1
    return all(words[color] >= count for color, count in needed.items())


def asked_for(text: str, attributes: Attributes) -> dict[str, str]:
    """The attributes that a prompt settles, by what it says or leaves unsaid."""
    seen = truth(attributes)
    asked = {name: value for name in ALWAYS_ASKED if (value := seen[name]) is not None}
    if f"{attributes.skin} skin" in text.lower():
        asked["skin"] = attributes.skin
    if attributes.hat != "none":
        named = attributes.hat in text.lower()
        asked.pop("hat")
        if named:
            asked["hat"] = attributes.hat
    return asked


def judge(
    checker: Checker, pictures: Sequence[Image.Image], prompts: Sequence[tuple[str, Attributes]]
) -> tuple[dict[str, Result], list[str]]:
    """Counts what came out as asked, and lists what did not."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    wrong = []
    for picture, (text, attributes) in zip(pictures, prompts, strict=True):
        reading = checker.read(picture)
        for name, value in asked_for(text, attributes).items():
            asked[name] += 1
            right[name] += reading[name] == value
            if reading[name] != value:
                wrong.append(f"{name}: asked {value}, drew {reading[name]}: {text}")
    return {name: Result(right[name], asked[name]) for name in asked}, wrong


def judge_bare(checker: Checker, pipeline: FluxPipeline, each: int, seed: int) -> dict[str, Result]:
    """Whether "a girl" alone gives a girl's hair and no beard, and "a man" alone a man's."""
    results = {}
    for prompt in BARE_PROMPTS:
        pictures = generate(pipeline, [prompt] * each, seed)
        readings = [checker.read(picture) for picture in pictures]
        if prompt in ("a girl", "a woman"):
            right = [r["hair_style"] in FEMALE_STYLES and r["beard"] == "no" for r in readings]
        else:
            right = [r["hair_style"] in ("short", "spiky") for r in readings]
        results[prompt] = Result(sum(right), len(right))
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure how the model follows prompts.")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="diffusers folder")
    parser.add_argument("--data", type=Path, default=DEFAULT_DATA, help="rendered data")
    parser.add_argument("--count", type=int, default=200, help="held-out prompts")
    parser.add_argument("--bare", type=int, default=32, help="pictures of each bare prompt")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--length", type=int, default=T5_LENGTH, help="text tokens of a prompt")
    parser.add_argument("--true-cfg-scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--sheet", type=Path, help="also save the first 64 pictures here")
    parser.add_argument("--out", type=Path, help="also write the numbers here, as JSON")
    args = parser.parse_args(argv)
    pipeline = FluxPipeline.from_pretrained(args.model)
    pipeline.set_progress_bar_config(disable=True)
    checker = load_checker()
    prompts = evaluation_prompts(load(args.data / "held_out.npz"), args.count, args.seed)
    started = time.perf_counter()
    pictures = generate(
        pipeline,
        [text for text, _ in prompts],
        args.seed,
        args.steps,
        length=args.length,
        true_cfg_scale=args.true_cfg_scale,
    )
    seconds = time.perf_counter() - started
    results, wrong = judge(checker, pictures, prompts)
    if args.bare:
        results |= judge_bare(checker, pipeline, args.bare, args.seed)
    print("\n".join(wrong))
    print(f"{args.count} held-out prompts, {args.steps} steps, {seconds:.0f} s")
    for name, result in results.items():
        goal = f" (goal {GOALS[name]:.0%})" if name in GOALS else ""
        print(f"{name:14s} {result.right:4d} of {result.asked:4d} {result.share:7.1%}{goal}")
    if args.sheet:
        contact_sheet(pictures[:64]).save(args.sheet)
    if args.out:
        numbers = {name: [result.right, result.asked] for name, result in results.items()}
        args.out.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
