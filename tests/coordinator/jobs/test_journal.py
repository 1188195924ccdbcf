"""The journal: what the next process finds, and that no job suffers from its disk."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.jobs import journal as module
from coordinator.jobs.journal import Journal, Recovered
from coordinator.jobs.record import JobRecord
from ditmesh.errors import JobCancelled
from ditmesh.jobs import Snapshot
from ditmesh.v1 import job_pb2
from tests.coordinator.fakes import World, f32, gate, make_job, run, until, world

MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The journal's file."""
    return tmp_path / "journal.sqlite"


@asynccontextmanager
async def running_job(**options: float) -> AsyncIterator[tuple[World, JobRecord]]:
    """A job that has its state after step 2 of 4, and ends with the block."""
    async with world() as w:
        steps, w.scripts["group"].before = gate()
        record, _ = await w.begin(*make_job(tensors=[f32(1000)]), **options)
        steps.release(), steps.release()
        await until(lambda: record.snapshot is not None and record.step == 2)
        yield w, record
        steps.release(), steps.release()
        await w.ended(record)


def reopened(path: Path) -> list[Recovered]:
    """What a new process reads."""
    journal = Journal(path, max_bytes=MIB)
    try:
        return journal.recover()
    finally:
        journal.close()


def snapshot(step: int) -> Snapshot:
    """A state after that step."""
    return Snapshot(job_pb2.JobState(step=step), (f32(1, 16, 4, 4, value=step),))


def test_a_job_goes_on_from_its_newest_state(path: Path) -> None:
    """Spec, tensors, state, owner and deadline are as they were."""

    async def test() -> None:
        async with running_job(remaining_s=60.0) as (_, record):
            journal = Journal(path, max_bytes=MIB)
            journal.taken(record)
            journal.stepped(record)
            journal.close()
            (found,) = reopened(path)
            assert (found.job_id, found.scope, found.digest) == ("job", "", record.digest)
            assert record.job is not None
            assert found.job == record.job
            assert found.admitted == record.admitted
            assert found.snapshot == record.snapshot
            assert found.end is None
            assert found.remaining_s is not None
            assert 50.0 < found.remaining_s <= 60.0

    run(test())


def test_a_restored_job_goes_on_from_what_its_executor_holds(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did steps after the journal's last state, which were this coordinator's neither."""

    async def fetch(link: Any, job_id: str, after_step: int) -> Snapshot | None:
        return snapshot(3) if after_step < 3 else None

    async def test() -> None:
        async with running_job() as (_, record):
            journal = Journal(path, max_bytes=MIB)
            journal.taken(record)
            journal.stepped(record)
            journal.close()
        monkeypatch.setattr("coordinator.jobs.recovery._fetch", fetch)
        async with world() as w:
            (found,) = reopened(path)
            w.jobs.restore(found)
            (restored,) = w.jobs._records.values()
            assert await w.ended(restored) is None
            assert w.scripts["group"].runs == [("job", 3)]
            (segment,) = restored.summary().segments
            assert (segment.first_step, segment.end_step) == (3, 4)

    run(test())


def test_a_result_waits_for_its_client(path: Path) -> None:
    """With its summary; a job that failed does not: its client has read why."""

    async def test() -> None:
        async with world() as w:
            journal = Journal(path, max_bytes=MIB)
            done, _ = await w.begin(*make_job("done"))
            journal.taken(done)  # before anything else is awaited: it may be over by then
            failed, _ = await w.begin(*make_job("failed"))
            journal.taken(failed)
            w.runner.stop(failed, JobCancelled("enough"))
            for record in (done, failed):
                await w.ended(record)
                journal.ended(record)
            journal.close()
            (found,) = reopened(path)
            assert found.job_id == "done"
            assert found.end is not None
            assert done.end is not None
            assert found.end.tensors == done.end.tensors
            assert found.summary == done.summary()

    run(test())


@pytest.mark.parametrize("since_boot_s", [0.5, 1e6])
def test_a_state_a_second_and_the_last_one_of_all(
    since_boot_s: float, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sampling path pays for no more; an orderly end writes the newest, and then nothing.

    A machine that has just started, whose clock is below the interval, has its first state too.
    """
    clock = SimpleNamespace(time=time.time, monotonic=lambda: since_boot_s)
    monkeypatch.setattr(module, "time", clock)  # the module's own: asyncio's goes on
    assert module._STATE_INTERVAL_S == 1.0
    monkeypatch.setattr(module, "_STATE_INTERVAL_S", 3600.0)  # this test may take longer than 1 s

    async def test() -> None:
        async with running_job() as (_, record):
            journal = Journal(path, max_bytes=MIB)
            journal.taken(record)
            for step in (3, 4, 5):
                record.snapshot = snapshot(step)
                journal.stepped(record)
            kept = _states(journal)
            assert kept == [3]
            record.snapshot = snapshot(7)
            journal.freeze([record])
            journal.ended(record)
            journal.close()
            (found,) = reopened(path)
            assert found.snapshot == snapshot(7)

    run(test())


@pytest.mark.parametrize("left", [[2], []])
def test_a_state_that_was_taken_back_is_not_gone_on_from(
    left: list[int], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However short a time ago the last one was written: the next process finds the one before it,
    or none.
    """
    monkeypatch.setattr(module, "_STATE_INTERVAL_S", 3600.0)

    async def test() -> None:
        async with running_job() as (_, record):
            journal = Journal(path, max_bytes=MIB)
            journal.taken(record)
            record.keep(snapshot(3))
            journal.stepped(record)
            record.begin_again()
            for step in left:
                record.keep(snapshot(step))
            journal.set_back(record)
            assert _states(journal) == left
            journal.close()
            (found,) = reopened(path)
            assert found.snapshot == (snapshot(2) if left else None)

    run(test())


def _states(journal: Journal) -> list[int]:
    """The steps of the states that are in the file now."""
    rows = journal._thread.submit(
        lambda: journal._database.execute("SELECT update_ FROM state").fetchall()
    ).result()
    return [module.node_pb2.StateUpdate.FromString(row[0]).state.step for row in rows]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """States are not spaced."""
    monkeypatch.setattr(module, "_STATE_INTERVAL_S", 0.0)


@pytest.mark.usefixtures("eager")
def test_a_slow_disk_holds_one_state_and_no_event_loop(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a write hangs, newer states replace the one that waits; bytes are copied elsewhere."""
    copying: set[str] = set()
    join = module._join

    def watched(tensors: module.Sequence[module.WireTensor]) -> bytes:
        copying.add(threading.current_thread().name)
        return join(tensors)

    monkeypatch.setattr(module, "_join", watched)

    async def test() -> None:
        async with running_job() as (_, record):
            journal = Journal(path, max_bytes=MIB)
            disk = threading.Event()
            journal._thread.submit(disk.wait)
            journal.taken(record)
            for step in (3, 4, 5):
                record.snapshot = snapshot(step)
                journal.stepped(record)
            assert list(journal._unwritten.values()) == [snapshot(5)]
            disk.set()
            assert _states(journal) == [5]
            assert not journal._unwritten
            journal.close()
        assert copying == {"journal_0"}

    run(test())


@pytest.mark.usefixtures("eager")
def test_a_full_disk_costs_no_job_anything(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is said once, and when there is room again states are written again."""

    async def test() -> None:
        async with running_job() as (_, record):
            journal = Journal(path, max_bytes=MIB)
            journal.taken(record)

            def limit(pages: int) -> None:
                journal._thread.submit(
                    lambda: journal._database.execute(f"PRAGMA max_page_count = {pages}").fetchall()
                ).result()

            limit(1)
            for step in (3, 4):
                record.snapshot = Snapshot(job_pb2.JobState(step=step), (f32(5000),))
                journal.stepped(record)
            assert _states(journal) == []
            limit(10_000)
            journal.stepped(record)
            assert _states(journal) == [4]
            journal.close()

    with caplog.at_level(logging.ERROR):
        run(test())
    assert [r.message for r in caplog.records] == [
        "the journal cannot be written: database or disk is full"
    ]


def test_the_journal_has_a_size(path: Path) -> None:
    """A job that does not fit is not in it; when another is forgotten there is room again."""

    async def test() -> None:
        async with running_job() as (w, record):
            other, _ = await w.begin(*make_job("other"))
            journal = Journal(path, max_bytes=record.admitted.nbytes + 1)
            journal.taken(record)
            journal.taken(other)
            journal.forgotten(record)
            journal.taken(other)
            journal.close()
            assert [found.job_id for found in reopened(path)] == ["other"]
            w.runner.stop(other, JobCancelled("enough"))

    run(test())


def test_what_cannot_be_read_is_left_out(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A broken entry does not cost the others; another version's file is begun anew."""

    async def test() -> None:
        async with running_job() as (w, record):
            other, _ = await w.begin(*make_job("other"))
            journal = Journal(path, max_bytes=MIB)
            journal.taken(record)
            journal.taken(other)
            journal.close()
            w.runner.stop(other, JobCancelled("enough"))
        with sqlite3.connect(path) as database:
            database.execute("UPDATE job SET spec = x'ff' WHERE id = 'job'")
        database.close()
        with caplog.at_level(logging.CRITICAL):
            assert [found.job_id for found in reopened(path)] == ["other"]
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 99")
        database.close()
        assert reopened(path) == []

    run(test())


def test_a_file_that_is_no_journal_stops_the_start(path: Path) -> None:
    """In words that name it."""
    path.write_bytes(b"a picture, perhaps" * 100)
    with pytest.raises(OSError, match="cannot be used as a journal"):
        Journal(path, max_bytes=MIB)
