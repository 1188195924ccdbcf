"""What an executor says when it cannot do a job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ditmesh import errors
from ditmesh.errors import DitmeshError
from ditmesh.v1 import node_pb2 as pb
from tests.executor.node import Node, Stream, failure, golden_job, until


def test_an_order_for_another_group_is_stale(node: Node) -> None:
    """ABORTED before anything is sent."""
    order = pb.RunRequest(job=pb.RunJob(epoch=3, job=golden_job().spec))
    assert isinstance(failure(lambda: list(node.stub.Run(iter([order])))), errors.StaleEpoch)


def test_an_unknown_model_is_named(node: Node) -> None:
    """NOT_FOUND with those there are."""
    error = failure(lambda: node.run(golden_job(model="big")))
    assert isinstance(error, errors.UnknownModel)
    assert "tiny" in error.message


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        (lambda out: (out[0] * float("nan"),), errors.BadResult),
        (lambda out: (torch.zeros_like(out[0]),), errors.BadResult),
    ],
)
def test_a_result_that_is_none_is_a_failure(
    node: Node, output: Callable[[Any], Any], kind: type[DitmeshError]
) -> None:
    """A model that gives NaN, and one that leaves the noise as it was."""
    hook = node.transformer.register_forward_hook(lambda module, args, out: output(out))
    try:
        assert type(failure(lambda: node.run(golden_job()))) is kind
    finally:
        hook.remove()
    assert node.run(golden_job()).result is not None


def test_a_model_that_breaks_is_the_executors_failure(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    """INTERNAL with the advice to go on elsewhere, not a bad request."""

    def broken() -> None:
        raise RuntimeError("out of memory")

    node.before.append(broken)
    error = failure(lambda: node.run(golden_job()))
    assert type(error) is errors.ExecutorFailed
    assert "out of memory" in error.message
    assert "out of memory" in caplog.text


@pytest.mark.parametrize("failure_of_all", [True, False])
def test_a_rank_that_fails_alone_breaks_the_group_before_the_next_job_begins(
    node: Node, failure_of_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others wait for it in a collective: the job that waits behind must not answer them. What
    all ranks find alike leaves the group whole.
    """
    seen: list[str] = []
    monkeypatch.setattr(node.servicer._engine, "abort", lambda: seen.append("abort"))
    first, second = Stream(node.stub), Stream(node.stub)
    first.prepare(golden_job(job_id="first"))
    second.prepare(golden_job(job_id="second"))
    go = threading.Event()

    def act() -> None:
        seen.append("pass")
        go.wait(10.0)
        if len(seen) == 1 and not failure_of_all:
            raise RuntimeError("out of memory")

    def spoil(module: Any, args: Any, out: Any) -> Any:
        return (out[0] * float("nan"),) if failure_of_all and len(seen) == 1 else out

    node.before.append(act)
    hook = node.transformer.register_forward_hook(spoil)
    try:
        first.send(start=pb.StartRun())
        until(lambda: seen == ["pass"])
        second.send(start=pb.StartRun())
        go.set()
        kind = errors.BadResult if failure_of_all else errors.ExecutorFailed
        assert type(failure(first.follow)) is kind
        assert second.follow().result is not None
        assert seen == ["pass", *([] if failure_of_all else ["abort"]), *["pass"] * 8]
    finally:
        hook.remove()
        second.end()
