"""A job's way down the ladder, and up again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from coordinator.lifecycle.job import JobPhase
from ditmesh.errors import (
    BadResult,
    DitmeshError,
    ExecutorFailed,
    GroupLost,
    InvalidRequest,
    RanksDiffer,
    Unavailable,
)
from ditmesh.v1 import job_pb2
from ditmesh.v1 import sampler_pb2 as pb
from tests.coordinator.fakes import f32, gate, make_job, messages, run, until, world


def segments(summary: pb.JobSummary) -> list[tuple[str, int, int]]:
    return [(s.executor, s.first_step, s.end_step) for s in summary.segments]


def fallbacks(summary: pb.JobSummary) -> list[tuple[str, str, str]]:
    return [(f.source, f.target, f.reason) for f in summary.fallbacks]


def test_a_job_runs_on_the_group_and_says_so() -> None:
    """Progress of every step, then the result; one segment, no fallback."""

    async def test() -> None:
        async with world() as w:
            record, listener = await w.begin(*make_job(steps=3))
            heard = await messages(listener)
            steps = [m.progress.step for m in heard if m.HasField("progress")]
            assert steps == [1, 2, 3]
            assert record.phase is JobPhase.SUCCEEDED
            assert record.end is not None
            assert record.end.result is not None
            assert segments(record.summary()) == [("group", 0, 3)]
            assert fallbacks(record.summary()) == []
            assert record.summary().segments[0].mesh == "ulysses=2"
            await w.ended(record)

    run(test())


@pytest.mark.parametrize("policy", ["FALLBACK_POLICY_ALLOW", "FALLBACK_POLICY_FORBID"])
def test_a_lost_group_forms_again_and_continues_from_the_newest_state(policy: str) -> None:
    """No step is repeated; the summary tells what happened. No fallback was needed for it."""

    async def test() -> None:
        async with world() as w:
            w.scripts["group"].fail[2] = GroupLost("rank 1 died")
            record, _ = await w.begin(*make_job(steps=4, fallback=policy))
            assert await w.ended(record) is None
            assert w.scripts["group"].runs == [("job", 0), ("job", 2)]
            assert segments(record.summary()) == [("group", 0, 2), ("group", 2, 4)]
            assert [s.epoch for s in record.summary().segments] == [1, 2]
            assert fallbacks(record.summary()) == [("group", "group", "GROUP_LOST")]
            assert "rank 1 died" in record.summary().fallbacks[0].message
            assert w.group.failures == [(1, "rank 1 died")]

    run(test())


def test_a_group_that_stays_lost_leaves_the_job_to_the_local_sampler() -> None:
    """After the wait for another group, from the newest state."""

    async def test() -> None:
        async with world() as w:
            w.group.returns = False
            w.scripts["group"].fail[3] = GroupLost("rank 0 died")
            record, _ = await w.begin(*make_job(steps=4))
            assert await w.ended(record) is None
            assert segments(record.summary()) == [("group", 0, 3), ("local", 3, 4)]
            assert fallbacks(record.summary()) == [("group", "local", "GROUP_LOST")]
            assert record.summary().fallbacks[0].at_step == 3
            assert record.summary().fallbacks[0].repeated_steps == 0

    run(test())


def test_a_job_that_costs_the_group_twice_goes_to_the_local_sampler() -> None:
    """Without a step in between: it does not go round for ever, and the group goes on to serve
    others.
    """

    async def test() -> None:
        async with world() as w:
            w.scripts["group"].before = deadly_step(2)
            record, _ = await w.begin(*make_job(steps=4))
            assert await w.ended(record) is None
            assert segments(record.summary()) == [
                ("group", 0, 2),
                ("group", 2, 2),
                ("local", 2, 4),
            ]
            w.scripts["group"].before = None
            await until(lambda: w.group.formed is not None)
            other, _ = await w.begin(*make_job("other"))
            assert await w.ended(other) is None
            assert segments(other.summary()) == [("group", 0, 4)]

    run(test())


def test_a_job_that_advances_between_losses_stays_with_the_group() -> None:
    """However often its nodes die: that is not the job's fault."""

    async def test() -> None:
        async with world() as w:
            w.scripts["group"].fail |= {step: GroupLost("rank 1 died") for step in (1, 2, 3)}
            record, _ = await w.begin(*make_job(steps=4))
            assert await w.ended(record) is None
            assert segments(record.summary()) == [("group", i, i + 1) for i in range(4)]

    run(test())


def deadly_step(number: int) -> Callable[[int], Awaitable[None]]:
    """What a script awaits before each step: that one costs the group, every time."""

    async def before(step: int) -> None:
        if step == number:
            raise GroupLost("rank 1 died")

    return before


def test_a_bad_result_starts_again_on_the_local_sampler() -> None:
    """States from where values overflow are not trusted; the group itself is not given up."""

    async def test() -> None:
        async with world() as w:
            w.scripts["group"].fail[3] = BadResult("the latent is not finite after step 3")
            record, _ = await w.begin(*make_job(steps=4))
            assert await w.ended(record) is None
            assert segments(record.summary()) == [("group", 0, 3), ("local", 0, 4)]
            assert fallbacks(record.summary()) == [("group", "local", "BAD_RESULT")]
            assert record.summary().fallbacks[0].repeated_steps == 3
            assert w.group.failures == []

    run(test())


@pytest.mark.parametrize(
    ("sent", "goes_on_from"),
    [((1, 2, 3), 2), ((1, 2), 2), ((1, 3), 1), ((3,), 0), ((), 0)],
    ids=str,
)
def test_ranks_that_differ_take_the_newest_state_with_them(
    sent: tuple[int, ...], goes_on_from: int
) -> None:
    """It may be the wrong one. Those before it were compared by all ranks before they went on, and
    so the job does not begin again. The journal hears of it.
    """

    async def test() -> None:
        async with world() as w:
            script = w.scripts["group"]
            script.sends_state = lambda step: step in sent
            script.fail[3] = RanksDiffer("rank 1 is at step 3 with another latent")
            set_back: list[int] = []
            w.journal.set_back = lambda record: set_back.append(record.step)  # type: ignore[method-assign]
            record, _ = await w.begin(*make_job(steps=4))
            assert await w.ended(record) is None
            assert script.runs == [("job", 0), ("job", goes_on_from)]
            assert fallbacks(record.summary()) == [("group", "group", "RANKS_DIFFER")]
            assert record.summary().fallbacks[0].repeated_steps == 3 - goes_on_from
            assert set_back == [goes_on_from]
            assert len(w.group.failures) == 1

    run(test())


def test_ranks_that_differ_before_their_first_step_had_a_sound_state() -> None:
    """It went to all of them from here; twice is enough all the same."""

    async def test() -> None:
        async with world() as w:
            script = w.scripts["group"]
            script.fail[2] = GroupLost("rank 1 died")

            async def differ(step: int) -> None:
                if len(script.runs) > 1:
                    raise RanksDiffer("rank 1 is at step 2 with another latent")

            script.before = differ
            record, _ = await w.begin(*make_job(steps=4))
            assert await w.ended(record) is None
            assert script.runs == [("job", 0), ("job", 2)]
            assert segments(record.summary())[-1] == ("local", 2, 4)

    run(test())


def test_a_model_missing_on_the_group_leads_to_the_local_sampler_at_once() -> None:
    """An executor that failed without being lost is not tried again with this job."""

    async def test() -> None:
        async with world() as w:
            w.scripts["group"].fail[0] = ExecutorFailed("the file is damaged")
            record, _ = await w.begin(*make_job(steps=2))
            assert await w.ended(record) is None
            assert segments(record.summary()) == [("group", 0, 0), ("local", 0, 2)]
            assert w.group.failures == []

    run(test())


def test_a_forbidden_fallback_is_an_error_after_the_second_loss() -> None:
    """In words that say both."""

    async def test() -> None:
        async with world() as w:
            w.scripts["group"].before = deadly_step(1)
            record, _ = await w.begin(*make_job(fallback="FALLBACK_POLICY_FORBID"))
            error = await w.ended(record)
            assert isinstance(error, Unavailable)
            assert "forbids the fallback" in error.message
            assert w.scripts["local"].runs == []

    run(test())


@pytest.mark.parametrize("failure", [BadResult("not finite"), InvalidRequest("no", field="x")])
def test_what_fails_on_the_last_rung_fails_the_job(failure: DitmeshError) -> None:
    """With the executor's own words; another error than a loss fails it on any rung."""

    async def test() -> None:
        async with world(nodes=0) as w:
            w.scripts["local"].fail[1] = failure
            record, listener = await w.begin(*make_job())
            assert type(await w.ended(record)) is type(failure)
            assert record.phase is JobPhase.FAILED
            await messages(listener)

    run(test())


def test_a_local_sampler_that_dies_is_waited_for() -> None:
    """The job goes on there from its newest state, once the process is back."""

    async def test() -> None:
        async with world(nodes=0) as w:
            w.scripts["local"].fail[2] = ExecutorFailed("it died")
            record, _ = await w.begin(*make_job(steps=4))
            assert await w.ended(record) is None
            assert segments(record.summary()) == [("local", 0, 2), ("local", 2, 4)]
            assert fallbacks(record.summary())[-1] == ("local", "local", "EXECUTOR_FAILED")

    run(test())


@pytest.mark.parametrize("at_step", [0, 2])
def test_a_local_sampler_that_fails_again_and_again_at_one_step_fails_the_job(at_step: int) -> None:
    """A job that no executor can do does not go round for ever. Steps of which no state is left
    are no progress.
    """

    async def die(step: int) -> None:
        if step == at_step:
            raise ExecutorFailed("it died")

    async def test() -> None:
        async with world(nodes=0) as w:
            w.scripts["local"].before = die
            w.scripts["local"].sends_state = lambda step: False
            record, _ = await w.begin(*make_job(steps=4))
            assert isinstance(await w.ended(record), ExecutorFailed)

    run(test())


def test_an_unexpected_error_is_an_internal_one_and_hides_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log has the traceback; the executor is free again."""

    async def test() -> None:
        async with world() as w:
            w.scripts["group"].fail[1] = ZeroDivisionError("a secret")
            record, _ = await w.begin(*make_job())
            error = await w.ended(record)
            assert error is not None
            assert error.reason == "INTERNAL_ERROR"
            assert "a secret" not in error.message

    run(test())
    assert "a secret" in caplog.text


def test_the_group_takes_back_what_it_lacked() -> None:
    """A job that runs locally for want of a group goes on there once there is one again."""

    async def test() -> None:
        async with world(formed=False) as w:
            semaphore, w.scripts["local"].before = gate()
            record, _ = await w.begin(*make_job(steps=4))
            semaphore.release()
            await until(lambda: record.step == 1)
            w.group.form()
            await until(lambda: record.stop.requested)
            semaphore.release()
            assert await w.ended(record) is None
            assert segments(record.summary()) == [("local", 0, 1), ("group", 1, 4)]
            assert fallbacks(record.summary()) == [
                ("group", "local", "NO_GROUP"),
                ("local", "group", "GROUP_RETURNED"),
            ]

    run(test())


def test_a_job_from_a_state_begins_there() -> None:
    """A client may continue what it stopped, or what another cluster began."""

    async def test() -> None:
        async with world() as w:
            spec, tensors = make_job(steps=4)
            latent = f32(1, 16, 4, 4)
            spec.tensors.append(latent.spec.to_proto())
            spec.state.CopyFrom(job_pb2.JobState(step=3, sampler_revision=1, latent=2))
            record, _ = await w.begin(spec, [*tensors, latent])
            assert await w.ended(record) is None
            assert segments(record.summary()) == [("group", 3, 4)]

    run(test())
