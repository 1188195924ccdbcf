"""What a supervisor does about children that end, and that it does nothing else."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ditmesh.supervisor import MISCONFIGURED, Backoff, ChildEvent, ChildSpec, Supervisor, tell
from tests.supervisor.driver import Driver, child, gone, wait_until
from tests.supervisor.targets import WAIT_S


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_killed_is_restarted(start: Callable[..., Driver], method: str) -> None:
    """A child that dies by SIGKILL is started again, and the others do not notice."""
    driver = start(child("a", "sleep", WAIT_S), child("b", "sleep", WAIT_S), start_method=method)
    driver.read_words("up", 2)
    driver.read_until(lambda _: len(driver.events("started")) == 2)
    pids = {event["child"]: event["pid"] for event in driver.events("started")}

    os.kill(pids["a"], signal.SIGKILL)
    driver.read_words("up", 3)
    driver.read_until(lambda _: len(driver.events("started")) == 3)

    assert [(e["child"], e["code"]) for e in driver.events("ended")] == [("a", 128 + 9)]
    assert driver.events("started")[2]["child"] == "a"
    assert driver.events("started")[2]["pid"] != pids["a"]
    assert not gone(pids["b"])


def test_restarts_back_off(start: Callable[..., Driver]) -> None:
    """A child that ends at once is restarted after 0.1, 0.2 and 0.4 s, whatever its code."""
    driver = start(child("a", "leave", 0))
    driver.read_until(lambda _: len(driver.events("started")) == 4)

    assert [event["delay_s"] for event in driver.events("ended")[:3]] == [0.1, 0.2, 0.4]
    for ended, started in zip(driver.events("ended"), driver.events("started")[1:], strict=False):
        assert started["at"] - ended["at"] >= ended["delay_s"] - 0.001


def test_backoff_grows_to_a_limit_and_forgets() -> None:
    """Pauses double up to 5 s; a life of 10 s makes the next one short again."""
    backoff = Backoff()
    assert [backoff.after(0.0) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.after(9.9) == 5.0
    assert backoff.after(10.0) == 0.1
    assert backoff.after(0.0) == 0.2


def test_restarts_and_kills_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    """What an operator reads in the log of a container; what goes as it should is not said."""
    for event in (
        ChildEvent("started", "node3", 41),
        ChildEvent("ended", "node3", 41, code=137, delay_s=0.2),
        ChildEvent("stopping", "node3", 42),
        ChildEvent("killed", "node3", 42),
        ChildEvent("ended", "node3", 42, code=137),
        ChildEvent("ended", "node3", 42, code=MISCONFIGURED),
        ChildEvent("ended", "node4", 43, code=MISCONFIGURED, stops_all=True),
    ):
        tell(event)
    first, second, third = capsys.readouterr().err.splitlines()
    assert first.endswith("node3 ended with code 137; starting it again in 0.2 s (process 41)")
    assert second.endswith("node3 did not stop in time and was killed (process 42)")
    assert third.endswith("node4 cannot run as it is configured; stopping (process 43)")


def test_stop_during_a_pause_cancels_the_restart(start: Callable[..., Driver]) -> None:
    """A child that waits to be restarted stays down when the supervisor stops."""
    driver = start(child("a", "leave", 1))
    driver.read_until(lambda _: len(driver.events("ended")) == 5)
    driver.process.terminate()

    assert driver.finish()[0] == 0
    assert len(driver.events("started")) == len(driver.events("ended"))
    # Of one that was started after the stop this would be None.
    assert driver.events("ended")[-1]["delay_s"] is not None


def test_idle_supervisor_sleeps(start: Callable[..., Driver]) -> None:
    """While nothing happens the supervisor uses no processor time and is not woken."""
    driver = start(child("a", "sleep", WAIT_S))
    driver.read_words("up")
    status = Path(f"/proc/{driver.process.pid}/status")

    def switches() -> int:
        lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
        return int(lines["voluntary_ctxt_switches"])

    def slept() -> bool:
        before = switches()
        time.sleep(0.5)
        return switches() == before

    wait_until(slept)  # it may still be busy with the start


def test_orphans_are_reaped(start: Callable[..., Driver]) -> None:
    """A process that the supervisor inherits, as process 1 inherits orphans, leaves no zombie."""
    driver = start(child("a", "leave_orphan"), adopt=True)
    orphan = int(driver.read_words("orphan")[0][0])

    os.kill(orphan, signal.SIGKILL)

    wait_until(lambda: not Path(f"/proc/{orphan}").exists())
    assert driver.process.poll() is None
    assert not driver.events("ended")


def test_names_must_differ() -> None:
    """Two children of one name could not be told apart in events."""
    with pytest.raises(ValueError, match="must differ"):
        Supervisor([ChildSpec("a", "m:f"), ChildSpec("a", "m:g")])
