"""The reader of attributes: right on portraits, silent on what is none."""

import numpy as np
import pytest
from PIL import Image

from training.portraits.checker import Checker, accuracies, load_checker
from training.portraits.dataset import Portraits

JUDGED = ("hair_color", "glasses", "clothes_color", "background", "hat", "beard")


@pytest.fixture(scope="module")
def checker() -> Checker:
    """The reader with its trained weights."""
    return load_checker()


def enlarge(cells: np.ndarray) -> Image.Image:
    """A 128x128 picture of 16x16 cells."""
    return Image.fromarray(cells).resize((128, 128), Image.Resampling.NEAREST)


def test_it_reads_held_out_portraits(checker: Checker, portraits: Portraits) -> None:
    """At most one of 64 portraits is misread in any attribute that judges the model."""
    shares = accuracies(checker, portraits)
    for name in JUDGED:
        assert shares[name] >= 1 - 1 / 50, (name, shares[name])


def test_it_reads_a_picture_as_it_reads_its_cells(checker: Checker, portraits: Portraits) -> None:
    """128x128 pixels and 16x16 cells are one portrait."""
    cells = (portraits.pictures[:4] / 255).astype(np.float32)
    pictures = [enlarge(picture) for picture in portraits.pictures[:4]]
    assert [checker.read(picture) for picture in pictures] == checker.read_cells(cells)


@pytest.mark.parametrize("level", [0, 90, 128, 200, 255])
def test_a_grey_picture_has_no_attributes(checker: Checker, level: int) -> None:
    """What a failed sampling run leaves behind must not pass for a portrait."""
    reading = checker.read(Image.new("RGB", (128, 128), (level, level, level)))
    assert set(reading.values()) == {None}


def test_noise_has_no_attributes(checker: Checker) -> None:
    """The noise that sampling starts from must not pass for a portrait."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    reading = checker.read(enlarge(noise))
    assert all(reading[name] is None for name in ("hair_color", "clothes_color", "background"))


def test_another_size_is_refused(checker: Checker) -> None:
    """The message says what is wrong."""
    with pytest.raises(ValueError, match="128x128"):
        checker.read(Image.new("RGB", (64, 64)))
