"""The connections over which the first rank of a mesh tells the others."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import torch.distributed as dist

from ditmesh.mesh import MeshSpec
from gpu_node.parallel import decisions
from gpu_node.parallel.decisions import ConnectionBroken, Hearing, Telling
from tests.ports import free_ports

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
        with pytest.raises(ConnectionBroken, match=f"the first rank.*at {HOST} broke"):
            hearing.share(VALUES)


def test_a_first_rank_that_says_nothing() -> None:
    """Who waits for it does so no longer than it may."""
    with (
        connected(1, timeout_s=0.1) as (_, (hearing,)),
        pytest.raises(ConnectionBroken, match=r"the first rank.*was silent for 0.1 s"),
    ):
        hearing.share(VALUES)


def test_a_rank_that_does_not_come() -> None:
    """Its place is not kept for longer than the group waits for anything."""
    with (
        closing(Telling(HOST, 1, 0.1)) as telling,
        pytest.raises(ConnectionBroken, match=r"a rank of this mesh was silent for 0.1 s"),
    ):
        telling.accept()


@pytest.mark.parametrize("number", [errno.EHOSTUNREACH, errno.ENETDOWN, errno.ECONNREFUSED])
def test_a_first_rank_out_of_reach(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Whatever the network says, it is the connection that is at fault, and not who made it."""

    def refuse(*args: object) -> socket.socket:
        raise OSError(number, os.strerror(number))

    with closing(Telling(HOST, 1, 0.1)) as telling:
        monkeypatch.setattr(socket, "create_connection", refuse)
        with pytest.raises(ConnectionBroken, match=os.strerror(number)):
            Hearing(telling.invitation(), 0.1)


def test_what_was_made_is_known_when_the_rest_fails() -> None:
    """Of two meshes whose first ranks this one is to hear, the second has none: the first end can
    be closed.
    """
    store = dist.HashStore()
    near, far = MeshSpec((0, 2), ulysses=2), MeshSpec((1, 2), ulysses=2)
    ends: list[Telling | Hearing] = []
    for _, telling in decisions.invite(store, [near], 0, frozenset(), 1.0):
        ends.append(telling)
    store.set(f"decisions/{far}", json.dumps([HOST, free_ports(1), "token"]))
    with pytest.raises(ConnectionBroken):
        for _, hearing in decisions.follow(store, [near, far], 2, 1.0):
            ends.append(hearing)
    assert [type(end) for end in ends] == [Telling, Hearing]
    for end in ends:
        end.close()
