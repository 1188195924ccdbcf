"""How tensors cross a stream: declared, asked for, sent in chunks, verified.

The receiver answers a table of declarations with the indices that it lacks; the sender
then sends just those, in that order. The same code serves clients, coordinator and nodes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile

import numpy as np

from ditmesh.content import ContentStore
from ditmesh.errors import InvalidRequest, InvalidTensor, LimitExceeded, ProtocolError
from ditmesh.tensors import TensorSpec, WireTensor, start_hash
from ditmesh.v1 import tensor_pb2 as pb

CHUNK_BYTES = 1 << 20
MAX_CHUNK_BYTES = 2 << 20
# Memory for all of a tensor is had when so much of it has come.
_BEGUN = 1 / 16
# A LoRA has hundreds.
MAX_TENSORS = 8192


def read_specs(
    messages: Sequence[pb.TensorSpec], *, field: str, max_bytes: int
) -> tuple[TensorSpec, ...]:
    """Check a table of declarations. Raises InvalidTensor or LimitExceeded."""
    if len(messages) > MAX_TENSORS:
        raise LimitExceeded(
            f"{field} declares {len(messages)} tensors; at most {MAX_TENSORS}", field=field
        )
    specs = tuple(
        TensorSpec.from_proto(m, field=f"{field}[{i}]", max_bytes=max_bytes)
        for i, m in enumerate(messages)
    )
    total = sum(spec.nbytes for spec in specs)
    if total > max_bytes:
        raise LimitExceeded(
            f"{field} declares {total} bytes in all; this server takes at most {max_bytes} "
            "bytes a request",
            field=field,
        )
    return specs


def count_unhashed(specs: Iterable[TensorSpec]) -> int:
    """How many tensors at the beginning have no hash: every receiver needs them."""
    return sum(1 for _ in takewhile(lambda spec: not spec.sha256, specs))


class Receiver:
    """Collects the tensors of one table.

    With a store, tensors that it holds in `scope` are not asked for, and new ones that have
    a hash are put there once verified. Memory grows with what arrives, not with what was
    declared. Raises InvalidTensor or ProtocolError from `feed`.

    The first `unasked` tensors are sent without being asked for. As their sender cannot know what
    the store holds, they have no hash: anything else is an InvalidRequest.
    """

    def __init__(
        self,
        specs: Sequence[TensorSpec],
        *,
        field: str,
        store: ContentStore | None = None,
        scope: str = "",
        unasked: int = 0,
    ) -> None:
        if unasked > count_unhashed(specs):
            raise InvalidRequest(
                f"of {field}, {unasked} were to come unasked; only tensors before the first that "
                "has a hash can",
                field=field,
            )
        self.specs = tuple(specs)
        self._field = field
        self._store = store
        self._scope = scope
        self._have = [self._held(spec) for spec in specs]
        # One tensor may stand twice in a table: it is asked for once. The same hash under another
        # type or shape is not the same tensor.
        first: dict[TensorSpec, int] = {}
        self._twin = [first.setdefault(s, i) if s.sha256 else i for i, s in enumerate(specs)]
        self.needed = tuple(
            i for i, have in enumerate(self._have) if have is None and self._twin[i] == i
        )
        self._pending = list(reversed(self.needed))
        self._pieces = _Pieces()
        self._received = 0
        self.received_bytes = 0
        """Of all tensors so far."""
        self._digest = self._next_hash()

    def _held(self, spec: TensorSpec) -> WireTensor | None:
        if self._store is None or not spec.sha256:
            return None
        tensor = self._store.get(self._scope, spec.sha256)
        # The hash covers type and shape: another declaration of it is a lie that fails later.
        return tensor if tensor is not None and tensor.spec == spec else None

    def _next_hash(self) -> hashlib._Hash | None:
        spec = self.specs[self._pending[-1]] if self._pending else None
        return start_hash(spec) if spec is not None and spec.sha256 else None

    @property
    def missing(self) -> tuple[int, ...]:
        """Those of `needed` that are still to come, in the order in which they must."""
        return tuple(reversed(self._pending))

    @property
    def complete(self) -> bool:
        """Whether every tensor is here."""
        return not self._pending

    def feed(self, chunk: pb.TensorChunk) -> None:
        """Take the next chunk."""
        if not self._pending:
            raise ProtocolError(f"a chunk of {self._field}[{chunk.tensor}] was not asked for")
        index = self._pending[-1]
        spec = self.specs[index]
        name = f"{self._field}[{index}]"
        data = chunk.data
        if chunk.tensor != index or chunk.offset != self._received:
            raise ProtocolError(
                f"expected byte {self._received} of {name}, "
                f"got byte {chunk.offset} of {self._field}[{chunk.tensor}]"
            )
        if not data or len(data) > MAX_CHUNK_BYTES:
            raise ProtocolError(
                f"a chunk of {name} has {len(data)} bytes; 1 to {MAX_CHUNK_BYTES} are allowed"
            )
        if self._received + len(data) > spec.nbytes:
            raise InvalidTensor(
                f"{name} was declared as {spec} with {spec.nbytes} bytes, but more were sent",
                field=name,
            )
        # Hashed as it comes: a large tensor must not hold up an event loop at its end.
        if self._digest is not None:
            self._digest.update(data)
        self._received += len(data)
        self.received_bytes += len(data)
        whole = len(data) == spec.nbytes
        if not whole:
            self._pieces.add(data, spec.nbytes)
        if self._received == spec.nbytes:
            self._finish(index, data if whole else self._pieces.joined())

    def place(self, found: Mapping[int, bytes | memoryview]) -> None:
        """Take whole tensors from where nobody could have changed them: hashes are not computed.

        Raises InvalidTensor for another length, ProtocolError for one that was not asked for.
        """
        self._adopt({index: WireTensor(self.specs[index], data) for index, data in found.items()})

    def adopt(self, found: Mapping[int, WireTensor]) -> None:
        """Take whole tensors of these specs from a process that is not believed their hashes.

        Raises InvalidTensor for another hash, ProtocolError for one that was not asked for.
        """
        for index, tensor in found.items():
            if tensor.spec.sha256:
                digest = start_hash(tensor.spec)
                digest.update(tensor.data)
                self._verify(index, digest)
        self._adopt(found)

    def _adopt(self, found: Mapping[int, WireTensor]) -> None:
        if self._received or not found.keys() <= set(self._pending):
            raise ProtocolError(f"tensors of {self._field} came that were not asked for")
        for index, tensor in found.items():
            self._keep(index, tensor)
            self.received_bytes += tensor.spec.nbytes
        self._pending = [index for index in self._pending if index not in found]
        self._digest = self._next_hash()

    def _finish(self, index: int, data: bytes | memoryview) -> None:
        if self._digest is not None:
            self._verify(index, self._digest)
        self._keep(index, WireTensor(self.specs[index], data))
        self._pieces, self._received = _Pieces(), 0
        self._pending.pop()
        self._digest = self._next_hash()

    def _verify(self, index: int, digest: hashlib._Hash) -> None:
        if digest.digest() != self.specs[index].sha256:
            name = f"{self._field}[{index}]"
            raise InvalidTensor(f"the bytes of {name} do not have the declared sha256", field=name)

    def _keep(self, index: int, tensor: WireTensor) -> None:
        if self._store is not None and tensor.spec.sha256:
            self._store.put(self._scope, tensor)
        self._have[index] = tensor

    def tensors(self) -> tuple[WireTensor, ...]:
        """All tensors of the table, in its order. Raises ProtocolError while incomplete."""
        if not self.complete:
            missing = self._pending[-1]
            raise ProtocolError(
                f"the stream ended before {self._field}[{missing}] was whole: "
                f"{self._received} of {self.specs[missing].nbytes} bytes came"
            )
        found = [self._have[twin] for twin in self._twin]
        return tuple(tensor for tensor in found if tensor is not None)


class _Pieces:
    """A tensor's bytes as they come.

    Memory grows with them at first: a list of tiny ones would cost many times their bytes, and a
    declaration alone is to cost nothing. What grows is moved about and has small pages, which
    takes longer than the copying; numpy has large ones.
    """

    def __init__(self) -> None:
        self._grown = bytearray()
        self._room = memoryview(b"")
        self._end = 0

    def add(self, data: bytes | memoryview, nbytes: int) -> None:
        """Take the next piece of `nbytes` in all."""
        begin, self._end = self._end, self._end + len(data)
        if not self._room and self._end >= _BEGUN * nbytes:
            self._room = np.empty(nbytes, np.uint8).data
            self._room[:begin] = self._grown
            self._grown = bytearray()
        if self._room:
            self._room[begin : self._end] = data
        else:
            self._grown += data

    def joined(self) -> memoryview:
        """All of them, for nobody to change."""
        return self._room.toreadonly()
