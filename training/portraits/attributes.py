"""What a portrait shows: the vocabulary of attributes, and how they are drawn at random.

Every name is an English word that a caption can use, and every colour is far enough from the
others of its list to be told apart by eye. The pictures are made by ``render.mjs`` from
``Attributes.options``; the style is dicebear's `pixel-art` (design licensed CC0 1.0).
"""

from __future__ import annotations

import random
import zlib
from dataclasses import asdict, dataclass
from typing import Any

GRID = 16
"""Cells along each side of a portrait."""
CELL = 8
"""Pixels along each side of a cell: a portrait is 128x128 pixels."""

HAIR_COLORS = {
    "black": "1d1b26",
    "brown": "6a3f14",
    "blonde": "edc23f",
    "red": "c9401b",
    "grey": "9c9ca6",
    "blue": "2f6fd6",
    "pink": "ee6fb0",
    "green": "3ea34c",
}
CLOTHES_COLORS = {
    "red": "d11a2a",
    "orange": "f5861f",
    "yellow": "ffd83a",
    "green": "1fa04a",
    "blue": "2458d8",
    "purple": "7c37b4",
    "pink": "ff86c2",
    "black": "26262c",
    "white": "f4f4f4",
}
BACKGROUNDS = {
    "red": "ee6a5f",
    "orange": "ffb468",
    "yellow": "fff08a",
    "green": "a5e39a",
    "blue": "8cc4ff",
    "purple": "cbb2f6",
    "pink": "ffc4de",
    "grey": "c3c6cd",
    "white": "ffffff",
}
HAT_COLORS = {
    "red": "b3201a",
    "green": "2f8a5b",
    "blue": "2663b3",
    "purple": "66489a",
    "black": "24201c",
}
SKIN_COLORS = {"light": "ffdbac", "tan": "d9a86f", "brown": "a26d3d", "dark": "6b4226"}
EYE_COLORS = {"blue": "3a7bd5", "green": "3f9a4a", "brown": "7a4a20"}
MOUTH_COLORS = ("c98276", "b04a4a")

HAIR_STYLES = {
    "long": ("long01", "long02", "long03", "long07", "long12", "long13", "long20", "long21"),
    "bob": ("long04", "long16"),
    "pigtails": ("long18",),
    "braid": ("long06", "long19"),
    "short": (
        "short01",
        "short02",
        "short04",
        "short09",
        "short14",
        "short15",
        "short16",
        "short17",
    ),
    "spiky": ("short11", "short13"),
}
FEMALE_STYLES = {"long": 0.64, "bob": 0.16, "pigtails": 0.1, "braid": 0.1}
MALE_STYLES = {"short": 0.85, "spiky": 0.15}
BEARDED_STYLES = {"short": 0.85, "long": 0.15}
HATTED_STYLES = {"long", "short"}

GLASSES = {
    "none": (),
    "glasses": ("light02", "light05", "light06", "light07"),
    "sunglasses": ("dark02", "dark03"),
}
HATS = {
    "none": (),
    "cap": ("variant02", "variant07"),
    "beanie": ("variant01", "variant03", "variant08"),
    "top hat": ("variant06",),
}
BEARDS = ("variant01", "variant04", "variant05", "variant07", "variant08")
CLOTHES = {
    "plain": ("variant01", "variant03", "variant05", "variant08", "variant14", "variant23"),
    "checked": ("variant06",),
    "striped": ("variant13",),
}
MOUTHS = {
    "smiling": ("happy09", "happy10", "happy11"),
    "sad": ("sad01", "sad02", "sad03"),
    "neutral": ("sad04", "sad05", "sad07"),
    "surprised": ("happy01", "happy13"),
}
EYES = ("variant01", "variant03", "variant06", "variant09")


@dataclass(frozen=True)
class Attributes:
    """One portrait. Fields that end in ``_variant`` are shapes that no caption names."""

    subject: str
    hair_style: str
    hair_color: str
    glasses: str
    hat: str
    hat_color: str
    beard: bool
    clothes: str
    clothes_color: str
    background: str
    skin: str
    eyes_color: str
    mouth: str
    hair_variant: str
    glasses_variant: str
    hat_variant: str
    beard_variant: str
    clothes_variant: str
    eyes_variant: str
    mouth_variant: str
    mouth_color: str

    @property
    def hair_hidden(self) -> bool:
        """Whether a hat leaves too little of the hair in sight to name it."""
        return self.hat != "none" and self.hair_style != "long"

    def options(self) -> dict[str, Any]:
        """The options that make dicebear's `pixel-art` draw exactly this portrait."""
        return {
            "hair": [self.hair_variant],
            "hairColor": [HAIR_COLORS[self.hair_color]],
            "glasses": [self.glasses_variant] if self.glasses_variant else [],
            "glassesProbability": 100 if self.glasses_variant else 0,
            "glassesColor": ["191919"],
            "hat": [self.hat_variant] if self.hat_variant else [],
            "hatProbability": 100 if self.hat_variant else 0,
            "hatColor": [HAT_COLORS[self.hat_color]],
            "beard": [self.beard_variant] if self.beard else [],
            "beardProbability": 100 if self.beard else 0,
            "accessoriesProbability": 0,
            "clothing": [self.clothes_variant],
            "clothingColor": [CLOTHES_COLORS[self.clothes_color]],
            "backgroundColor": [BACKGROUNDS[self.background]],
            "skinColor": [SKIN_COLORS[self.skin]],
            "eyes": [self.eyes_variant],
            "eyesColor": [EYE_COLORS[self.eyes_color]],
            "mouth": [self.mouth_variant],
            "mouthColor": [self.mouth_color],
        }

    def to_dict(self) -> dict[str, Any]:
        """The fields, as JSON holds them; ``Attributes(**fields)`` is the way back."""
        return asdict(self)


def held_out(attributes: Attributes) -> bool:
    """Whether this combination is kept from training: one in ten, fixed by a checksum."""
    combination = (
        attributes.hair_color,
        attributes.clothes_color,
        attributes.background,
        attributes.glasses,
    )
    return zlib.crc32("/".join(combination).encode()) % 10 == 0


def draw(rng: random.Random) -> Attributes:
    """Draws one portrait; each attribute on its own, so that none can be guessed from another."""
    subject = rng.choice(("girl", "woman", "boy", "man"))
    beard = subject == "man" and rng.random() < 0.5
    hat = "none" if rng.random() > 0.18 else rng.choice([name for name in HATS if name != "none"])
    if beard:
        styles = BEARDED_STYLES
    else:
        styles = FEMALE_STYLES if subject in ("girl", "woman") else MALE_STYLES
    if hat != "none":
        styles = {name: weight for name, weight in styles.items() if name in HATTED_STYLES}
    hair_style = _weighted(rng, styles)
    glasses = _weighted(rng, {"none": 0.62, "glasses": 0.26, "sunglasses": 0.12})
    clothes = _weighted(rng, {"plain": 0.76, "checked": 0.12, "striped": 0.12})
    mouth = rng.choice(list(MOUTHS))
    return Attributes(
        subject=subject,
        hair_style=hair_style,
        hair_color=rng.choice(list(HAIR_COLORS)),
        glasses=glasses,
        hat=hat,
        hat_color=rng.choice(list(HAT_COLORS)),
        beard=beard,
        clothes=clothes,
        clothes_color=rng.choice(list(CLOTHES_COLORS)),
        background=rng.choice(list(BACKGROUNDS)),
        skin=_weighted(rng, {"light": 0.4, "tan": 0.2, "brown": 0.2, "dark": 0.2}),
        eyes_color=rng.choice(list(EYE_COLORS)),
        mouth=mouth,
        hair_variant=rng.choice(HAIR_STYLES[hair_style]),
        glasses_variant=rng.choice(GLASSES[glasses]) if glasses != "none" else "",
        hat_variant=rng.choice(HATS[hat]) if hat != "none" else "",
        beard_variant=rng.choice(BEARDS) if beard else "",
        clothes_variant=rng.choice(CLOTHES[clothes]),
        eyes_variant=rng.choice(EYES),
        mouth_variant=rng.choice(MOUTHS[mouth]),
        mouth_color=rng.choice(MOUTH_COLORS),
    )


def draw_split(count: int, seed: int, want_held_out: bool) -> list[Attributes]:
    """Draws ``count`` portraits of one side of the split between training and held out."""
    rng = random.Random(seed)
    portraits: list[Attributes] = []
    while len(portraits) < count:
        attributes = draw(rng)
        if held_out(attributes) == want_held_out:
            portraits.append(attributes)
    return portraits


def _weighted(rng: random.Random, weights: dict[str, float]) -> str:
    return rng.choices(list(weights), weights=list(weights.values()))[0]
