"""An optional journal: jobs, their newest states and their results survive a coordinator.

SQLite, written by one thread of its own and never synced: the journal is for a process that
dies, not for a machine that does. Whatever goes wrong with it costs no job anything; the job is
merely not in it. On a disk that cannot keep up at most one state of each job waits to be written.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from coordinator.executors.member import RunEnd
from coordinator.jobs.admission import Admitted
from coordinator.jobs.record import JobRecord
from ditmesh import telemetry
from ditmesh.exchange import read_specs
from ditmesh.jobs import Job, Snapshot
from ditmesh.tensors import TensorSpec, WireTensor
from ditmesh.v1 import job_pb2, node_pb2, sampler_pb2

log = logging.getLogger(__name__)

_STATE_INTERVAL_S = 1.0
_REVISION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS job (
    scope TEXT, id TEXT, digest BLOB, spec BLOB, tensors BLOB, facts TEXT, deadline REAL,
    trace TEXT, PRIMARY KEY (scope, id));
CREATE TABLE IF NOT EXISTS state (
    scope TEXT, id TEXT, update_ BLOB, tensors BLOB, PRIMARY KEY (scope, id));
CREATE TABLE IF NOT EXISTS result (
    scope TEXT, id TEXT, result BLOB, tensors BLOB, summary BLOB, ended REAL,
    PRIMARY KEY (scope, id));
"""
_TABLES = ("job", "state", "result")


@dataclass(frozen=True)
class Recovered:
    """A job out of the journal: one with a result has ended, any other goes on."""

    job_id: str
    scope: str
    digest: bytes
    admitted: Admitted
    job: Job
    snapshot: Snapshot | None
    end: RunEnd | None
    summary: sampler_pb2.JobSummary | None
    remaining_s: float | None
    trace: telemetry.TraceContext | None


class Journal:
    """A journal in one file, of at most `max_bytes` of tensors."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Raises OSError when the file cannot be opened as a journal."""
        self._max_bytes = max_bytes
        self._bytes: dict[tuple[str, str], int] = {}
        self._stepped_at: dict[tuple[str, str], float] = {}
        self._unwritten: dict[tuple[str, str], Snapshot] = {}
        self._lock = threading.Lock()
        self._failed = False
        self._frozen = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        try:
            self._database = self._thread.submit(_open, path).result()
        except sqlite3.Error as error:
            raise OSError(f"{path} cannot be used as a journal: {error}") from error

    def recover(self) -> list[Recovered]:
        """Every job in the journal; blocks, for use at start. A broken entry is left out."""
        return self._thread.submit(lambda: list(self._read())).result()

    def taken(self, record: JobRecord) -> None:
        """See `JobLog`."""
        if record.job is None:
            return
        size = record.admitted.nbytes
        if sum(self._bytes.values()) + size > self._max_bytes:
            log.warning("job %s is not journalled: the journal is full", record.job_id)
            return
        self._bytes[_key(record)] = size
        admitted = record.admitted
        facts = {
            "steps": admitted.steps,
            "first_step": admitted.first_step,
            "latent_shape": admitted.latent_shape,
        }
        deadline = None
        if record.deadline is not None:
            deadline = time.time() + record.deadline - time.monotonic()
        job, key, digest = record.job, _key(record), record.digest
        trace = dict(telemetry.inject((), record.span.context)).get("traceparent", "")
        spec = job.spec.SerializeToString()
        self._write(
            "INSERT OR REPLACE INTO job VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            lambda: (
                *(*key, digest, spec, _join(job.tensors)),
                *(json.dumps(facts), deadline, trace),
            ),
        )

    def stepped(self, record: JobRecord) -> None:
        """See `JobLog`; at most once a second a job."""
        key, now = _key(record), time.monotonic()
        snapshot = record.snapshot
        if snapshot is None or key not in self._bytes:
            return
        last = self._stepped_at.get(key)
        if last is not None and now - last < _STATE_INTERVAL_S:
            return
        self._stepped_at[key] = now
        self._write_state(key, snapshot)

    def set_back(self, record: JobRecord) -> None:
        """See `JobLog`."""
        key = _key(record)
        if key not in self._bytes:
            return
        if record.snapshot is not None:
            self._write_state(key, record.snapshot)
        else:
            self._write("DELETE FROM state WHERE scope = ? AND id = ?", lambda: key)

    def _write_state(self, key: tuple[str, str], snapshot: Snapshot) -> None:
        with self._lock:
            waits = key in self._unwritten
            self._unwritten[key] = snapshot
        if waits:
            return

        def values() -> tuple[object, ...]:
            with self._lock:
                newest = self._unwritten.pop(key)
            update = node_pb2.StateUpdate(
                tensors=[t.spec.to_proto() for t in newest.tensors], state=newest.state
            )
            return (*key, update.SerializeToString(), _join(newest.tensors))

        self._write("INSERT OR REPLACE INTO state VALUES (?, ?, ?, ?)", values)

    def ended(self, record: JobRecord) -> None:
        """See `JobLog`. A job that failed is dropped: its client has read why."""
        key = _key(record)
        if key not in self._bytes or self._frozen:
            return
        if record.error is not None or record.end is None or record.end.result is None:
            self.forgotten(record)
            return
        result, tensors = record.end.result.SerializeToString(), record.end.tensors
        summary = record.summary().SerializeToString()
        self._write(
            "INSERT OR REPLACE INTO result VALUES (?, ?, ?, ?, ?, ?)",
            lambda: (*key, result, _join(tensors), summary, time.time()),
        )

    def forgotten(self, record: JobRecord) -> None:
        """See `JobLog`."""
        key = _key(record)
        if self._frozen or self._bytes.pop(key, None) is None:
            return
        self._stepped_at.pop(key, None)
        for table in _TABLES:
            self._write(f"DELETE FROM {table} WHERE scope = ? AND id = ?", lambda: key)

    def freeze(self, records: Iterable[JobRecord]) -> None:
        """See `JobLog`: their newest states are written, and nothing after that."""
        for record in records:
            if record.snapshot is not None and _key(record) in self._bytes:
                self._write_state(_key(record), record.snapshot)
        self._frozen = True

    def close(self) -> None:
        """Write what is pending, and close the file."""
        self._thread.submit(self._database.close)
        self._thread.shutdown(wait=True)

    def _write(self, statement: str, values: Callable[[], Sequence[object]]) -> None:
        """`values` is called on the journal's thread: tensors are copied there."""

        def write() -> None:
            try:
                with self._database:
                    self._database.execute(statement, values())
            except sqlite3.Error as error:
                # A full disk, most likely: the jobs go on without the journal.
                if not self._failed:
                    log.error("the journal cannot be written: %s", error)
                self._failed = True
            else:
                self._failed = False

        self._thread.submit(write)

    def _read(self) -> Iterator[Recovered]:
        for row in self._database.execute("SELECT * FROM job").fetchall():
            try:
                recovered = self._recovered(row)
            except Exception:
                log.exception("journal entry %s cannot be read", row[1])
                continue
            self._bytes[recovered.scope, recovered.job_id] = len(row[4])
            yield recovered

    def _recovered(self, row: tuple[object, ...]) -> Recovered:
        scope, job_id, digest, spec_bytes, blob, facts_json, deadline, trace = row
        spec = job_pb2.JobSpec.FromString(_bytes(spec_bytes))
        specs = read_specs(spec.tensors, field="spec", max_bytes=self._max_bytes)
        facts = json.loads(str(facts_json))
        key = (str(scope), str(job_id))
        snapshot = None
        for update_bytes, tensors in self._rows("SELECT update_, tensors FROM state", key):
            update = node_pb2.StateUpdate.FromString(_bytes(update_bytes))
            parts = read_specs(update.tensors, field="state", max_bytes=self._max_bytes)
            snapshot = Snapshot(update.state, _split(parts, _bytes(tensors)))
        end = summary = None
        for result_bytes, tensors, told in self._rows(
            "SELECT result, tensors, summary FROM result", key
        ):
            result = sampler_pb2.SampleResult.FromString(_bytes(result_bytes))
            parts = read_specs(result.tensors, field="result", max_bytes=self._max_bytes)
            end = RunEnd(node_pb2.STOP_REASON_UNSPECIFIED, result, _split(parts, _bytes(tensors)))
            summary = sampler_pb2.JobSummary.FromString(_bytes(told))
        admitted = Admitted(
            spec, specs, facts["steps"], facts["first_step"], tuple(facts["latent_shape"])
        )
        return Recovered(
            job_id=key[1],
            scope=key[0],
            digest=_bytes(digest),
            admitted=admitted,
            job=Job(spec, _split(specs, _bytes(blob)), admitted.latent_bytes),
            snapshot=snapshot,
            end=end,
            summary=summary,
            remaining_s=None if deadline is None else float(str(deadline)) - time.time(),
            trace=telemetry.extract([("traceparent", str(trace))]),
        )

    def _rows(self, select: str, key: tuple[str, str]) -> list[tuple[object, ...]]:
        return self._database.execute(f"{select} WHERE scope = ? AND id = ?", key).fetchall()


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = OFF")
    (revision,) = database.execute("PRAGMA user_version").fetchone()
    if revision != _REVISION:
        # Another version's entries cannot be continued: begin anew.
        for table in _TABLES:
            database.execute(f"DROP TABLE IF EXISTS {table}")
        database.execute(f"PRAGMA user_version = {_REVISION}")
    database.executescript(_SCHEMA)
    return database


def _key(record: JobRecord) -> tuple[str, str]:
    return record.scope, record.job_id


def _join(tensors: Sequence[WireTensor]) -> bytes:
    return b"".join(tensor.data for tensor in tensors)


def _split(specs: Sequence[TensorSpec], blob: bytes) -> tuple[WireTensor, ...]:
    tensors, start = [], 0
    for spec in specs:
        tensors.append(WireTensor(spec, blob[start : start + spec.nbytes]))
        start += spec.nbytes
    return tuple(tensors)


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"expected bytes in the journal, found {type(value).__name__}")
    return value
