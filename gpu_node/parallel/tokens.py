"""How text and image tokens are shared out when nothing divides: integers only.

xfuser splits a sequence into equal parts. Where a length does not divide, every part is padded to
the same length, and attention must leave the padding out, or it would attend to tokens that do
not exist. Valid tokens are spread evenly (no part is a token longer than another), text's
remainder going to the first parts and the image's to the last, so that every part has a valid
token whenever there are as many tokens as parts. Ring attention needs that: a block of keys that
is all padding has no softmax.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenLayout:
    """`text` and `image` tokens over `ulysses * ring` parts; part `p` has ring rank `p // ulysses`.

    A part holds its text tokens, then its image tokens, each padded to the longest share.
    """

    text: int
    image: int
    ulysses: int
    ring: int

    @property
    def parts(self) -> int:
        """Ranks that share the sequence."""
        return self.ulysses * self.ring

    @property
    def divides(self) -> bool:
        """Whether no padding is needed."""
        return self.text % self.parts == 0 and self.image % self.parts == 0

    @property
    def feasible(self) -> bool:
        """Whether every ring block has a key to attend to."""
        return self.ring == 1 or self.text + self.image >= self.parts

    @property
    def text_padded(self) -> int:
        """Text tokens in one part, padding included."""
        return -(-self.text // self.parts)

    @property
    def image_padded(self) -> int:
        """Image tokens in one part, padding included."""
        return -(-self.image // self.parts)

    def text_shares(self) -> list[int]:
        """Valid text tokens in each part."""
        each, rest = divmod(self.text, self.parts)
        return [each + (part < rest) for part in range(self.parts)]

    def image_shares(self) -> list[int]:
        """Valid image tokens in each part."""
        each, rest = divmod(self.image, self.parts)
        return [each + (part >= self.parts - rest) for part in range(self.parts)]

    def text_positions(self) -> list[int]:
        """Where each text token stands once all parts' padded text is joined."""
        return _positions(self.text_shares(), self.text_padded)

    def image_positions(self) -> list[int]:
        """Where each image token stands once all parts' padded image is joined."""
        return _positions(self.image_shares(), self.image_padded)

    def valid_keys(self, ring_rank: int) -> list[int]:
        """The valid positions among the keys that the parts of one ring rank hold together."""
        length = self.text_padded + self.image_padded
        text, image = self.text_shares(), self.image_shares()
        keys: list[int] = []
        for place in range(self.ulysses):
            part = ring_rank * self.ulysses + place
            start = place * length
            keys += range(start, start + text[part])
            start += self.text_padded
            keys += range(start, start + image[part])
        return keys


def _positions(shares: list[int], padded: int) -> list[int]:
    starts = [part * padded for part in range(len(shares))]
    return [
        start + offset
        for start, share in zip(starts, shares, strict=True)
        for offset in range(share)
    ]
