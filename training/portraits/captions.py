"""English captions of portraits, varied in wording, order and in what they leave out.

Glasses, hats and beards are named whenever they are there, so that a prompt that names none asks
for none; everything else may be left out. One caption in ten is empty: it teaches the model the
unconditional picture that classifier-free guidance needs.
"""

from __future__ import annotations

import random

from training.portraits.attributes import Attributes

EMPTY_SHARE = 0.1
BARE_SHARE = 0.1
NAME_SHARE = 0.8
FILLER_SHARE = 0.06

PREFIXES = (
    "",
    "",
    "",
    "pixel art portrait of ",
    "pixel art of ",
    "a pixel art portrait of ",
    "a portrait of ",
    "portrait of ",
    "a picture of ",
    "a drawing of ",
    "a photo of ",
    "an 8-bit portrait of ",
)
SUFFIXES = (", pixel art", ", pixel art style", ", 8-bit", ", portrait", ", retro game style")
FILLERS = (
    "high quality",
    "detailed",
    "masterpiece",
    "beautiful lighting",
    "cute",
    "sharp focus",
    "trending",
    "looking at the viewer",
    "standing in front of the camera",
    "a simple drawing with flat colors",
    "in the style of an old computer game",
    "please draw this for me",
)
SUBJECT_WORDS = {
    "girl": ("girl", "girl", "girl", "young girl", "female"),
    "woman": ("woman", "woman", "woman", "lady", "female"),
    "boy": ("boy", "boy", "boy", "young boy", "male"),
    "man": ("man", "man", "man", "guy", "male"),
}
CLOTHES_WORDS = ("shirt", "shirt", "shirt", "t-shirt", "top", "sweater", "clothes")
BACKGROUND_WORDS = ("background", "background", "background", "backdrop")


def caption(attributes: Attributes, rng: random.Random) -> str:
    """Writes one caption of a portrait; may be empty."""
    if rng.random() < EMPTY_SHARE:
        return ""
    subject = rng.choice(SUBJECT_WORDS[attributes.subject])
    if rng.random() < BARE_SHARE:
        details = _accessories(attributes, rng)
    else:
        details = _details(attributes, rng)
    style = rng.choice((_list, _list, _sentence, _tags))
    text = style(subject, details, rng)
    if rng.random() < FILLER_SHARE:
        text = _fill(text, rng)
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    if rng.random() < 0.08:
        text += "."
    return text


def full_caption(attributes: Attributes) -> str:
    """The caption that names every attribute, always in the same words."""
    parts = [f"a {attributes.subject}"]
    if not attributes.hair_hidden:
        parts[0] += f" with {_hair_words(attributes)}"
    if attributes.beard:
        parts.append("a beard")
    if attributes.glasses != "none":
        parts.append(attributes.glasses)
    if attributes.hat != "none":
        parts.append(f"a {attributes.hat_color} {attributes.hat}")
    pattern = "" if attributes.clothes == "plain" else f"{attributes.clothes} "
    parts.append(f"a {pattern}{attributes.clothes_color} shirt")
    parts.append(f"{attributes.skin} skin")
    parts.append(f"{attributes.background} background")
    return ", ".join(parts)


def _hair_words(attributes: Attributes) -> str:
    color = attributes.hair_color
    if attributes.hair_style in ("long", "short", "spiky"):
        return f"{attributes.hair_style} {color} hair"
    if attributes.hair_style == "pigtails":
        return f"{color} pigtails"
    return f"a {color} {attributes.hair_style}"


def _hair(attributes: Attributes, rng: random.Random) -> list[str]:
    if attributes.hair_hidden:
        return []
    color, style = attributes.hair_color, attributes.hair_style
    choice = rng.random()
    if choice < 0.1:
        return []
    if choice < 0.45:
        return [f"{color} hair"]
    if choice < 0.55 and style in ("long", "short", "spiky"):
        return [f"{style} hair"]
    words = _hair_words(attributes)
    if style in ("long", "short", "spiky") and rng.random() < 0.2:
        return [f"{color} {style} hair" if rng.random() < 0.5 else f"{style}, {color} hair"]
    if style == "pigtails" and rng.random() < 0.3:
        return [f"{color} hair in pigtails"]
    return [words]


def _accessories(attributes: Attributes, rng: random.Random) -> list[str]:
    details = []
    if attributes.glasses == "glasses":
        details.append(rng.choice(("glasses", "glasses", "a pair of glasses", "round glasses")))
    elif attributes.glasses == "sunglasses":
        details.append(rng.choice(("sunglasses", "sunglasses", "dark glasses")))
    elif rng.random() < 0.05:
        details.append("no glasses")
    if attributes.hat != "none":
        noun = attributes.hat if rng.random() < 0.5 else "hat"
        color = f"{attributes.hat_color} " if rng.random() < NAME_SHARE else ""
        details.append(f"a {color}{noun}")
    elif rng.random() < 0.04:
        details.append("no hat")
    if attributes.beard:
        named = not attributes.hair_hidden and rng.random() < 0.2
        details.append(f"a {attributes.hair_color} beard" if named else "a beard")
    elif attributes.subject == "man" and rng.random() < 0.08:
        details.append("no beard")
    return details


def _clothes(attributes: Attributes, rng: random.Random) -> list[str]:
    if rng.random() > NAME_SHARE + 0.05:
        return []
    color = attributes.clothes_color
    if rng.random() < 0.1:
        return [f"dressed in {color}" if rng.random() < 0.5 else f"wearing {color}"]
    noun = rng.choice(CLOTHES_WORDS)
    if attributes.subject in ("girl", "woman") and rng.random() < 0.15:
        noun = "dress"
    pattern = ""
    if attributes.clothes != "plain" and rng.random() < NAME_SHARE:
        pattern = f"{attributes.clothes} "
    phrase = f"{pattern}{color} {noun}" if rng.random() < 0.7 else f"{color} {pattern}{noun}"
    if noun == "clothes":
        return [phrase]
    return [phrase if rng.random() < 0.5 else f"a {phrase}"]


def _looks(attributes: Attributes, rng: random.Random) -> list[str]:
    details = []
    if rng.random() < 0.4:
        details.append(f"{attributes.skin} skin")
    if attributes.glasses == "none" and rng.random() < 0.35:
        details.append(f"{attributes.eyes_color} eyes")
    if attributes.mouth != "neutral" and rng.random() < 0.45:
        words = {
            "smiling": ("smiling", "a smile", "happy"),
            "sad": ("sad", "frowning"),
            "surprised": ("surprised", "an open mouth"),
        }[attributes.mouth]
        details.append(rng.choice(words))
    return details


def _background(attributes: Attributes, rng: random.Random) -> str:
    if rng.random() > NAME_SHARE + 0.05:
        return ""
    return f"{attributes.background} {rng.choice(BACKGROUND_WORDS)}"


def _details(attributes: Attributes, rng: random.Random) -> list[str]:
    details = _hair(attributes, rng) + _accessories(attributes, rng)
    if rng.random() < 0.3:
        rng.shuffle(details)
    more = _clothes(attributes, rng) + _looks(attributes, rng)
    rng.shuffle(more)
    background = _background(attributes, rng)
    return details + more + ([background] if background else [])


def _article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _list(subject: str, details: list[str], rng: random.Random) -> str:
    """``a girl with long red hair and glasses, green shirt, blue background``."""
    text = rng.choice(PREFIXES) + _article(subject)
    joined = [detail for detail in details if _is_noun(detail)]
    count = min(len(joined), rng.choice((1, 2, 2, 3)))
    head, rest = joined[:count], [detail for detail in details if detail not in joined[:count]]
    if head:
        text += " with " + _join(head)
    return ", ".join([text, *rest])


def _sentence(subject: str, details: list[str], rng: random.Random) -> str:
    """``a smiling man with a beard and a hat wearing a red shirt on a white background``."""
    adjectives = [word for word in details if word in ("smiling", "happy", "sad", "surprised")]
    text = rng.choice(PREFIXES) + _article(" ".join([*adjectives, subject]))
    worn = [detail for detail in details if detail.endswith((*CLOTHES_WORDS, "dress"))]
    background = [detail for detail in details if detail.endswith(BACKGROUND_WORDS)]
    taken = {*adjectives, *worn, *background}
    nouns = [detail for detail in details if detail not in taken]
    loose = [noun for noun in nouns if not _is_noun(noun)]
    nouns = [noun for noun in nouns if _is_noun(noun)]
    if nouns:
        text += rng.choice((" with ", " with ", " who has ")) + _join(nouns)
    for phrase in worn:
        text += rng.choice((" wearing ", " in ", ", wearing ", " dressed in ")) + phrase
    for phrase in background:
        text += rng.choice((" on ", " against ", ", on ", " in front of ")) + f"a {phrase}"
    return ", ".join([text, *loose])


def _tags(subject: str, details: list[str], rng: random.Random) -> str:
    """``girl, red hair, glasses, blue background``, in any order."""
    tags = [detail.removeprefix("a ") for detail in details]
    rng.shuffle(tags)
    tags.insert(0 if rng.random() < 0.8 else rng.randint(0, len(tags)), subject)
    return ", ".join(tags) + (rng.choice(SUFFIXES) if rng.random() < 0.2 else "")


def _is_noun(detail: str) -> bool:
    """Whether "with" may stand before a detail."""
    return not detail.startswith(("dressed", "wearing")) and detail not in (
        "smiling",
        "happy",
        "sad",
        "frowning",
        "surprised",
    )


def _join(phrases: list[str]) -> str:
    if len(phrases) < 2:
        return "".join(phrases)
    return ", ".join(phrases[:-1]) + " and " + phrases[-1]


def _fill(text: str, rng: random.Random) -> str:
    """Adds words that no picture shows, some invented, so that the model learns to ignore such."""
    fillers = [rng.choice(FILLERS) for _ in range(rng.choice((1, 1, 2, 4)))]
    if rng.random() < 0.5:
        letters = "abcdefghijklmnopqrstuvwxyz"
        words = (
            "".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(rng.randint(1, 4))
        )
        fillers.append(" ".join(words))
    return ", ".join([text, *fillers] if rng.random() < 0.7 else [*fillers, text])
