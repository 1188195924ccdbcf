"""The connections over which the first rank of a mesh tells the others."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from gpu_node.parallel.decisions import Hearing, Telling

HOST = "127.0.0.1"
VALUES = [0, -1, 2**63 - 1, -(2**63)]


@contextmanager
def connected(others: int, timeout_s: float = 10.0) -> Iterator[tuple[Telling, list[Hearing]]]:
    """A first rank's end and those of the others."""
    telling = Telling(HOST, others, timeout_s)
    hearing = [Hearing(telling.invitation(), timeout_s) for _ in range(others)]
    telling.accept()
    try:
        yield telling, hearing
    finally:
        for end in (telling, *hearing):
            end.close()


def test_all_hear_what_the_first_says() -> None:
    """64 bits of each value, in order, also where it is several decisions ahead."""
    with connected(3) as (telling, hearing):
        for step in range(3):
            assert telling.share([step, *VALUES]) == [step, *VALUES]
        for end in hearing:
            heard = [end.share([7] * 5) for _ in range(3)]
            assert heard == [[step, *VALUES] for step in range(3)]


def test_a_stranger_is_turned_away() -> None:
    """Who connects without the token, or says nothing and leaves, takes no rank's place."""
    telling = Telling(HOST, 1, 10.0)
    *address, token = json.loads(telling.invitation())
    wrong = "0" * len(token)
    assert wrong != token
    with (
        closing(telling),
        socket.create_connection(tuple(address)) as stranger,
        socket.create_connection(tuple(address)) as gone,
    ):
        stranger.sendall(wrong.encode())
        gone.close()
        with closing(Hearing(telling.invitation(), 10.0)) as hearing:
            telling.accept()
            telling.share(VALUES)
            assert hearing.share(VALUES) == VALUES
            assert stranger.recv(1) == b""


def test_a_first_rank_that_is_gone() -> None:
    """Who waits for it learns so at once."""
    with connected(1) as (telling, (hearing,)):
        telling.close()
        with pytest.raises(ConnectionError, match="closed its connection"):
            hearing.share(VALUES)


def test_a_first_rank_that_says_nothing() -> None:
    """Who waits for it does so no longer than it may."""
    with connected(1, timeout_s=0.1) as (_, (hearing,)), pytest.raises(TimeoutError):
        hearing.share(VALUES)
