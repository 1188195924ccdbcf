"""Captions say what a portrait shows, and nothing else."""

import random

import pytest

from training.portraits.attributes import Attributes, draw, draw_split, held_out
from training.portraits.captions import caption, full_caption


def portraits(count: int, seed: int = 0) -> list[tuple[Attributes, str]]:
    """Portraits with one caption each."""
    rng = random.Random(seed)
    drawn = [draw(rng) for _ in range(count)]
    return [(attributes, caption(attributes, rng)) for attributes in drawn]


def test_glasses_hats_and_beards_are_named_exactly_when_they_are_there() -> None:
    """A prompt that names none of them asks for none."""
    for attributes, text in portraits(3000):
        if not text:
            continue
        bare = text.lower().replace("no glasses", "").replace("no hat", "").replace("no beard", "")
        assert ("glasses" in bare) == (attributes.glasses != "none"), text
        dark = "sunglasses" in bare or "dark glasses" in bare
        assert dark == (attributes.glasses == "sunglasses"), text
        assert ("beard" in bare) == attributes.beard, text
        worn = any(word in bare for word in ("hat", "cap", "beanie"))
        assert worn == (attributes.hat != "none"), text


def test_a_subject_fits_the_hair() -> None:
    """Girls and women have long hair styles, boys and men short ones or a beard."""
    for attributes, _ in portraits(1000):
        long_hair = attributes.hair_style in ("long", "bob", "pigtails", "braid")
        if attributes.subject in ("girl", "woman"):
            assert long_hair
            assert not attributes.beard
        else:
            assert attributes.beard or not long_hair


def test_colors_in_captions_are_those_of_the_portrait() -> None:
    """The words before "hair" and "background" are the portrait's colours."""
    for attributes, text in portraits(2000):
        words = text.lower().replace(",", " ").replace(".", "").split()
        for index, word in enumerate(words):
            if word in ("background", "backdrop"):
                assert words[index - 1] == attributes.background, text
            if word == "hair" and words[index - 1] not in (attributes.hair_style,):
                assert words[index - 1] == attributes.hair_color, text


def test_hair_under_a_hat_is_named_only_where_it_shows() -> None:
    """Short hair is hidden by a hat."""
    for attributes, text in portraits(3000):
        if attributes.hair_hidden:
            assert " hair" not in text, text
            assert "hair" not in full_caption(attributes)


def test_one_caption_in_ten_is_empty_and_few_are_the_same() -> None:
    """Empty captions teach the unconditional picture; the others vary."""
    texts = [text for _, text in portraits(4000)]
    assert texts.count("") / len(texts) == pytest.approx(0.1, abs=0.02)
    assert len(set(texts)) > 0.8 * len(texts)


def test_captions_read_well() -> None:
    """No doubled spaces or commas, no dangling ends."""
    for _, text in portraits(2000):
        assert "  " not in text
        assert ", ," not in text
        assert text == text.strip(" ,")


def test_held_out_combinations_never_reach_training() -> None:
    """The two sides of the split share no combination of colours and glasses."""

    def combinations(split: list[Attributes]) -> set[tuple[str, ...]]:
        return {(a.hair_color, a.clothes_color, a.background, a.glasses) for a in split}

    training = draw_split(2000, seed=0, want_held_out=False)
    kept = draw_split(300, seed=1, want_held_out=True)
    assert combinations(training).isdisjoint(combinations(kept))
    assert all(held_out(attributes) for attributes in kept)


def test_the_same_seed_draws_the_same_portraits() -> None:
    """The data set can be made again."""
    assert draw_split(50, 3, False) == draw_split(50, 3, False)
    assert draw_split(50, 3, False) != draw_split(50, 4, False)
