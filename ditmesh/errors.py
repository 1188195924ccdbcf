"""Every error that ditmesh raises, each with its gRPC status and its retry advice.

    DitmeshError
    ├── InvalidRequest        INVALID_ARGUMENT     a field is wrong; names it and says what is right
    │   ├── InvalidTensor     INVALID_ARGUMENT     a tensor's dtype, shape, bytes or values
    │   ├── LimitExceeded     INVALID_ARGUMENT     larger than this server ever accepts
    │   └── ProtocolError     INVALID_ARGUMENT     messages in an order that the contract forbids
    ├── InvalidMesh           FAILED_PRECONDITION  degrees that no group can have
    ├── UnknownModel          NOT_FOUND            no such model; names those there are
    ├── UnknownJob            NOT_FOUND            no such job; it never was or is forgotten
    ├── JobExists             ALREADY_EXISTS       the id is taken by a job with another spec
    ├── DamagedModel          FAILED_PRECONDITION  a model file is missing or broken; names it
    ├── Overloaded            RESOURCE_EXHAUSTED   queue or byte budget full; retry after a while
    ├── JobCancelled          CANCELLED            somebody asked for it
    ├── DeadlineExceeded      DEADLINE_EXCEEDED    the caller's time is over, or would not suffice
    ├── Unauthenticated       UNAUTHENTICATED      no credentials, or wrong ones
    ├── Unavailable           UNAVAILABLE          nothing can take the work now; retry later
    │   ├── Draining          UNAVAILABLE          this process is shutting down
    │   └── Loading           UNAVAILABLE          this process loads weights before anything else
    ├── StaleEpoch            ABORTED              a message from a group that is no more
    ├── ExecutorFailed        INTERNAL             whoever ran the job failed; its state lives on
    │   ├── GroupLost         INTERNAL             a rank died or hung
    │   │   └── RanksDiffer   INTERNAL             one has another latent than the others
    │   └── BadResult         INTERNAL             not finite, or the noise itself: never an answer
    └── InternalError         INTERNAL             a defect of ditmesh itself

`ditmesh.rpc_status` carries them over the wire and back.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import ClassVar

import grpc


class Retry(enum.Enum):
    """What a caller should do with the same request after an error."""

    NEVER = "never"
    """The same request fails again: change it first."""
    LATER = "later"
    """The same request may succeed after `retry_after_s`."""
    ELSEWHERE = "elsewhere"
    """The work can go on with another executor, from the newest state."""


class DitmeshError(Exception):
    """Root of the tree. `str(error)` is a sentence for the user.

    `field` is the dotted path of the request field at fault, or empty.
    `retry_after_s` is in seconds and only meaningful with `Retry.LATER`.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    retry: ClassVar[Retry] = Retry.NEVER
    reason: ClassVar[str] = "DITMESH_ERROR"

    def __init__(
        self, message: str, *, field: str = "", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidRequest(DitmeshError):
    """A field of the request is wrong; `field` names it."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class InvalidTensor(InvalidRequest):
    """A tensor's dtype, shape, byte count, hash or values are wrong."""

    reason = "INVALID_TENSOR"


class LimitExceeded(InvalidRequest):
    """Larger than a configured limit: it would never be accepted."""

    reason = "LIMIT_EXCEEDED"


class ProtocolError(InvalidRequest):
    """The messages of a stream came in an order that the contract forbids."""

    reason = "PROTOCOL_ERROR"


class InvalidMesh(DitmeshError):
    """Parallel degrees that do not fit the ranks or the model."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "INVALID_MESH"


class UnknownModel(DitmeshError):
    """No model of that name is served."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_MODEL"


class UnknownJob(DitmeshError):
    """No job of that id is known to this coordinator."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_JOB"


class JobExists(DitmeshError):
    """The job id belongs to a job with another spec."""

    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "JOB_EXISTS"


class DamagedModel(DitmeshError):
    """A model folder or file is missing, incomplete or not what it claims to be."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "DAMAGED_MODEL"


class Overloaded(DitmeshError):
    """The queue or the budget of bytes in flight is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = Retry.LATER
    reason = "OVERLOADED"


class JobCancelled(DitmeshError):
    """The job was cancelled on request."""

    code = grpc.StatusCode.CANCELLED
    reason = "JOB_CANCELLED"


class DeadlineExceeded(DitmeshError):
    """The caller's deadline passed, or no executor could meet it."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Unauthenticated(DitmeshError):
    """Credentials are missing or wrong."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class Unavailable(DitmeshError):
    """Nothing can take the work at present."""

    code = grpc.StatusCode.UNAVAILABLE
    retry = Retry.LATER
    reason = "UNAVAILABLE"


class Draining(Unavailable):
    """The process is shutting down: it finishes what it has and takes nothing new."""

    reason = "DRAINING"


class Loading(Unavailable):
    """The process loads weights: it takes the order once it is through."""

    reason = "LOADING"


class StaleEpoch(DitmeshError):
    """The message belongs to an epoch that this node has left."""

    code = grpc.StatusCode.ABORTED
    retry = Retry.ELSEWHERE
    reason = "STALE_EPOCH"


class ExecutorFailed(DitmeshError):
    """Whoever ran the job could not go on; the newest state can be continued elsewhere."""

    code = grpc.StatusCode.INTERNAL
    retry = Retry.ELSEWHERE
    reason = "EXECUTOR_FAILED"


class GroupLost(ExecutorFailed):
    """A rank died or hung."""

    reason = "GROUP_LOST"


class RanksDiffer(GroupLost):
    """A rank holds another state than its leader: no one can tell whose is right."""

    reason = "RANKS_DIFFER"


class BadResult(ExecutorFailed):
    """A latent that is not finite, or that equals the noise it started from."""

    reason = "BAD_RESULT"


class InternalError(DitmeshError):
    """A defect of ditmesh itself."""

    reason = "INTERNAL_ERROR"


def _tree(root: type[DitmeshError]) -> Iterator[type[DitmeshError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def by_reason() -> dict[str, type[DitmeshError]]:
    """Every error class under the `reason` that names it on the wire."""
    return {cls.reason: cls for cls in _tree(DitmeshError)}
