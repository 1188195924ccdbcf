"""How tokens are shared out: integers that attention depends on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gpu_node.parallel.tokens import TokenLayout

layouts = st.builds(
    TokenLayout,
    text=st.integers(1, 90),
    image=st.integers(1, 90),
    ulysses=st.integers(1, 4),
    ring=st.integers(1, 4),
)


@given(layouts)
def test_shares_are_even_and_complete(layout: TokenLayout) -> None:
    """Every token has a place, no part has more than one token above another, none overflows."""
    for total, shares, padded in (
        (layout.text, layout.text_shares(), layout.text_padded),
        (layout.image, layout.image_shares(), layout.image_padded),
    ):
        assert len(shares) == layout.parts
        assert sum(shares) == total
        assert max(shares) - min(shares) <= 1
        assert max(shares) == padded


@given(layouts)
def test_positions_keep_the_order_and_fit_the_parts(layout: TokenLayout) -> None:
    """Tokens stand in their order, and each part's share stands at the start of the part."""
    for positions, shares, padded in (
        (layout.text_positions(), layout.text_shares(), layout.text_padded),
        (layout.image_positions(), layout.image_shares(), layout.image_padded),
    ):
        assert positions == sorted(set(positions))
        for part, share in enumerate(shares):
            held = [at - part * padded for at in positions if at // padded == part]
            assert held == list(range(share))


@given(layouts)
def test_valid_keys_are_exactly_the_tokens(layout: TokenLayout) -> None:
    """Over all ring blocks, the keys attended to are as many as there are tokens, none twice."""
    length = layout.ulysses * (layout.text_padded + layout.image_padded)
    blocks = [layout.valid_keys(ring_rank) for ring_rank in range(layout.ring)]
    assert sum(len(block) for block in blocks) == layout.text + layout.image
    for block in blocks:
        assert block == sorted(set(block))
        assert all(0 <= key < length for key in block)
    if layout.divides:
        assert all(block == list(range(length)) for block in blocks)


@given(layouts)
def test_a_feasible_layout_has_no_empty_block(layout: TokenLayout) -> None:
    """Ring attention meets a valid key in every block whenever there is a token for each part."""
    blocks = [layout.valid_keys(ring_rank) for ring_rank in range(layout.ring)]
    if layout.feasible:
        assert all(blocks)
    else:
        assert layout.text + layout.image < layout.parts
