"""The store of tensors by hash: scopes, recency, limits, pins."""

from __future__ import annotations

import threading

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ditmesh.content import ContentStore
from ditmesh.tensors import WireTensor


def tensor(value: int, size: int = 10) -> WireTensor:
    return WireTensor.from_numpy(np.full(size, value, np.uint8)).hashed()


def test_a_tensor_is_found_under_its_hash_in_its_scope_only() -> None:
    """Nobody learns from a hash what another client sent."""
    store, kept = ContentStore(100), tensor(1)
    store.put("alice", kept)
    assert store.get("alice", kept.spec.sha256) is kept
    assert store.get("bob", kept.spec.sha256) is None
    assert store.get("alice", tensor(2).spec.sha256) is None


def test_the_least_recently_used_goes_first() -> None:
    """Getting and putting again both count as use."""
    store = ContentStore(30)
    one, two, three, four = (tensor(i) for i in range(4))
    for t in (one, two, three):
        store.put("", t)
    store.get("", one.spec.sha256)
    store.put("", two)
    store.put("", four)
    assert store.get("", three.spec.sha256) is None
    assert all(store.get("", t.spec.sha256) for t in (one, two, four))
    assert store.nbytes == 30


def test_small_tensors_are_bounded_in_number() -> None:
    """What is known of each takes room too; a pinned one stays here as well."""
    store, pinned = ContentStore(1000, max_tensors=2), tensor(0)
    store.pin("", [pinned.spec.sha256])
    for t in (pinned, *(tensor(value) for value in range(1, 5))):
        store.put("", t)
    held = [value for value in range(5) if store.get("", tensor(value).spec.sha256)]
    assert held == [0, 4]
    assert store.nbytes == 20


def test_putting_twice_counts_once() -> None:
    """The same tensor from two streams takes its room once."""
    store = ContentStore(100)
    store.put("", tensor(1))
    store.put("", tensor(1))
    assert store.nbytes == 10


def test_a_tensor_larger_than_all_room_leaves_the_others_alone() -> None:
    """It is not kept, and nothing is evicted for it."""
    store, small, large = ContentStore(30), tensor(1), tensor(2, size=31)
    store.put("", small)
    store.put("", large)
    assert store.get("", small.spec.sha256) is small
    assert store.get("", large.spec.sha256) is None


def test_a_pinned_tensor_stays_beyond_the_limit_until_the_last_unpin() -> None:
    """Pins count; the limit holds again afterwards."""
    store, pinned = ContentStore(20), tensor(0)
    store.pin("", [pinned.spec.sha256])
    store.put("", pinned)
    store.pin("", [pinned.spec.sha256])
    for value in range(1, 5):
        store.put("", tensor(value))
    store.unpin("", [pinned.spec.sha256])
    store.put("", tensor(5))
    assert store.get("", pinned.spec.sha256) is pinned
    store.unpin("", [pinned.spec.sha256])
    for value in range(6, 8):
        store.put("", tensor(value))
    assert store.get("", pinned.spec.sha256) is None
    assert store.nbytes == 20


class StoreMachine(RuleBasedStateMachine):
    """Any sequence of calls, against a model that knows what is pinned."""

    LIMIT = 50

    def __init__(self) -> None:
        super().__init__()
        self.store = ContentStore(self.LIMIT)
        self.pins: dict[tuple[str, int], int] = {}
        self.put_while_pinned: set[tuple[str, int]] = set()

    keys = st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 9))

    @rule(key=keys)
    def put(self, key: tuple[str, int]) -> None:
        """Keep a tensor."""
        self.store.put(key[0], tensor(key[1]))
        if self.pins.get(key):
            self.put_while_pinned.add(key)

    @rule(key=keys)
    def pin(self, key: tuple[str, int]) -> None:
        """Pin what is there or is to come."""
        self.store.pin(key[0], [tensor(key[1]).spec.sha256])
        self.pins[key] = self.pins.get(key, 0) + 1

    @rule(key=keys)
    def unpin(self, key: tuple[str, int]) -> None:
        """Undo one pin."""
        if self.pins.get(key):
            self.store.unpin(key[0], [tensor(key[1]).spec.sha256])
            self.pins[key] -= 1
            if not self.pins[key]:
                self.put_while_pinned.discard(key)

    @invariant()
    def pinned_tensors_are_held(self) -> None:
        """A pinned tensor that was put is there."""
        for scope, value in self.put_while_pinned:
            assert self.store.get(scope, tensor(value).spec.sha256) is not None

    @invariant()
    def the_limit_holds_but_for_pins(self) -> None:
        """Only pins exceed the limit."""
        pinned = 10 * sum(count > 0 for count in self.pins.values())
        assert 0 <= self.store.nbytes <= max(self.LIMIT, pinned)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(max_examples=20, deadline=None)


def test_threads_do_not_lose_count() -> None:
    """Streams of many clients use one store."""
    store = ContentStore(200)

    def work(scope: str) -> None:
        for value in range(200):
            kept = tensor(value % 30)
            store.put(scope, kept)
            store.pin(scope, [kept.spec.sha256])
            store.get(scope, kept.spec.sha256)
            store.unpin(scope, [kept.spec.sha256])

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = [store.get(scope, tensor(value).spec.sha256) for scope in "abcd" for value in range(30)]
    assert store.nbytes == 10 * sum(t is not None for t in held) <= 200
