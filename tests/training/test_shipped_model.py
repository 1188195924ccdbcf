"""The shipped folder: loads as it is, is small, and draws what it is asked for."""

import random

import pytest
import torch
from diffusers import FluxPipeline
from PIL import Image

from training.portraits.attributes import draw
from training.portraits.captions import caption
from training.portraits.checker import Checker, load_checker
from training.portraits.evaluate import names_colors
from training.portraits.paths import DEFAULT_MODEL
from training.portraits.sheet import contact_sheet, generate

ASKED = {
    "a girl with long red hair and glasses, green shirt, blue background": {
        "hair_color": "red",
        "hair_style": "long",
        "glasses": "glasses",
        "clothes_color": "green",
        "background": "blue",
        "beard": "no",
    },
    "a man with short black hair and a beard wearing a yellow shirt on a white background": {
        "hair_color": "black",
        "hair_style": "short",
        "glasses": "none",
        "clothes_color": "yellow",
        "background": "white",
        "beard": "yes",
    },
    "a woman with long blue hair, purple dress, pink background": {
        "hair_color": "blue",
        "glasses": "none",
        "clothes_color": "purple",
        "background": "pink",
        "beard": "no",
    },
    "a girl": {"hair_style": "long", "glasses": "none", "hat": "none", "beard": "no"},
}


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    """The shipped folder, loaded by diffusers."""
    loaded = FluxPipeline.from_pretrained(DEFAULT_MODEL)
    loaded.set_progress_bar_config(disable=True)
    return loaded


@pytest.fixture(scope="module")
def checker() -> Checker:
    """The reader of attributes."""
    return load_checker()


RIGHT_SHARE = 0.95
"""The least share of the attributes above that has to come out, all prompts together."""


def share_right(
    checker: Checker, pictures: list[Image.Image], asked: list[dict[str, str]]
) -> float:
    """The share of what was asked for that the reader sees in the pictures."""
    right = [
        checker.read(picture)[name] == value
        for picture, wanted in zip(pictures, asked, strict=True)
        for name, value in wanted.items()
    ]
    return sum(right) / len(right)


@pytest.fixture(scope="module")
def pictures(pipeline: FluxPipeline) -> list[Image.Image]:
    """A picture of each prompt, at eight steps."""
    return generate(pipeline, list(ASKED), seed=7, steps=8)


def test_prompts_come_out_as_asked(checker: Checker, pictures: list[Image.Image]) -> None:
    """Most attributes of a handful of prompts, far more than of another prompt's picture."""
    asked = list(ASKED.values())
    right = share_right(checker, pictures, asked)
    swapped = share_right(checker, pictures[1:] + pictures[:1], asked)
    assert right >= RIGHT_SHARE
    assert right > swapped


def test_glasses_come_out_as_asked(checker: Checker, pictures: list[Image.Image]) -> None:
    """There when named, absent when not."""
    for picture, asked in zip(pictures, ASKED.values(), strict=True):
        assert checker.read(picture)["glasses"] == asked["glasses"]


def test_the_same_check_fails_a_grey_picture(checker: Checker) -> None:
    """Or it would prove nothing."""
    grey = Image.new("RGB", (128, 128), (128, 128, 128))
    assert share_right(checker, [grey] * len(ASKED), list(ASKED.values())) == 0


@pytest.mark.parametrize("prompt", ["", "a girl with red hair " * 100, "zzz 日本 %$#"])
def test_any_prompt_works(pipeline: FluxPipeline, prompt: str) -> None:
    """Empty, very long and meaningless prompts give a finite picture that is not flat."""
    picture = generate(pipeline, [prompt], seed=0, steps=2)[0]
    assert picture.size == (128, 128)
    assert len(picture.getcolors(2**16) or range(2**16)) > 16


def test_the_default_text_length_works_too(pipeline: FluxPipeline, checker: Checker) -> None:
    """``FluxPipeline`` pads to 512 tokens unless it is told otherwise."""
    prompt = next(iter(ASKED))
    picture = generate(pipeline, [prompt], seed=7, steps=8, length=512)[0]
    assert checker.read(picture)["glasses"] == ASKED[prompt]["glasses"]


def test_the_folder_is_small_and_holds_safetensors_only() -> None:
    """At most 40 MB in all, and nothing that has to be unpickled."""
    files = [path for path in DEFAULT_MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".md", ".txt"}


def test_eight_ranks_can_share_the_attention(pipeline: FluxPipeline) -> None:
    """Heads, image tokens and text tokens all divide by eight."""
    config = pipeline.transformer.config
    assert config.num_attention_heads % 8 == 0
    assert pipeline.tokenizer_2.model_max_length % 8 == 0
    assert pipeline.vae_scale_factor == 8
    assert pipeline.vae.config.latent_channels == 16


def test_weights_are_finite(pipeline: FluxPipeline) -> None:
    """A damaged export would not be."""
    for model in (pipeline.transformer, pipeline.text_encoder, pipeline.text_encoder_2):
        assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_a_contact_sheet_holds_every_picture() -> None:
    """Eight to a row."""
    sheet = contact_sheet([Image.new("RGB", (128, 128), "red")] * 9)
    assert sheet.size == (8 * 132 + 4, 2 * 132 + 4)


def test_evaluation_prompts_name_their_colors() -> None:
    """A caption that leaves a colour out cannot be held against the model."""
    rng = random.Random(0)
    attributes = draw(rng)
    text = ""
    while not names_colors(text, attributes):
        text = caption(attributes, rng)
    assert attributes.clothes_color in text.lower()
    assert attributes.background in text.lower()
