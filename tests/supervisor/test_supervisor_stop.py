"""What ends all children, and how."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ditmesh.cli.exit_codes import USAGE
from ditmesh.supervisor import MISCONFIGURED
from tests.supervisor.driver import Driver, child, gone, wait_until
from tests.supervisor.targets import WAIT_S


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_stops_all_in_order(start: Callable[..., Driver], number: signal.Signals) -> None:
    """A stop signal becomes one SIGTERM for every child; all are reaped and the code is 0."""
    driver = start(child("a", "stop_on_term", "a"), child("b", "stop_on_term", "b"))
    pids = [int(words[0]) for words in driver.read_words("up", 2)]

    driver.process.send_signal(number)
    code, err = driver.finish()

    assert (code, err) == (0, "")
    assert {"a stopped in order", "b stopped in order"} <= set(driver.lines)
    assert [event["child"] for event in driver.events("stopping")] == ["a", "b"]
    assert sorted(event["code"] for event in driver.events("ended")) == [0, 0]
    assert not driver.events("killed")
    assert all(gone(pid) for pid in pids)


def test_ctrl_c_reaches_children_as_sigterm(start: Callable[..., Driver]) -> None:
    """SIGINT for the whole foreground group interrupts no child: they get the orderly SIGTERM."""
    driver = start(child("a", "stop_on_term", "a"))
    driver.read_words("up")

    os.killpg(driver.process.pid, signal.SIGINT)
    code, _ = driver.finish()

    assert code == 0
    assert "a stopped in order" in driver.lines
    assert "a interrupted" not in driver.lines


def test_child_that_ignores_sigterm_is_killed(start: Callable[..., Driver]) -> None:
    """After the grace time SIGKILL ends what is left, with all that it had started."""
    driver = start(child("deaf", "ignore_term"), child("good", "sleep", WAIT_S), grace_s=4.0)
    pids = [int(pid) for words in driver.read_words("up", 2) for pid in words]

    began = time.monotonic()
    driver.process.terminate()
    code, _ = driver.finish()

    assert code == 0
    assert 4.0 <= time.monotonic() - began < WAIT_S / 2
    assert [event["child"] for event in driver.events("killed")] == ["deaf"]
    assert {e["child"]: e["code"] for e in driver.events("ended")} == {"deaf": 137, "good": 143}
    assert len(pids) == 3
    wait_until(lambda: all(gone(pid) for pid in pids))


def test_second_ctrl_c_does_not_wait(start: Callable[..., Driver]) -> None:
    """A second SIGINT kills at once what still runs."""
    driver = start(child("deaf", "ignore_term"), grace_s=WAIT_S)
    driver.read_words("up")

    driver.process.send_signal(signal.SIGINT)
    driver.read_until(lambda _: bool(driver.events("stopping")))
    driver.process.send_signal(signal.SIGINT)

    assert driver.finish()[0] == 0
    assert driver.events("killed")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_die_with_the_supervisor(start: Callable[..., Driver], method: str) -> None:
    """When the supervisor itself is killed, no child outlives it."""
    driver = start(child("a", "sleep", WAIT_S), child("b", "sleep", WAIT_S), start_method=method)
    pids = [int(words[0]) for words in driver.read_words("up", 2)]

    driver.process.kill()

    wait_until(lambda: all(gone(pid) for pid in pids))


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize(("how", "code"), [(3, 3), ([4], 4), ("boom", 1), (0, 0)])
def test_end_of_a_child_not_restarted_ends_all(
    start: Callable[..., Driver], method: str, how: object, code: int
) -> None:
    """Its exit code, by return, sys.exit or exception, is the supervisor's; the others stop."""
    main = child("main", "leave", how, restart=False)
    driver = start(child("other", "sleep", WAIT_S), main, start_method=method)

    found, err = driver.finish()

    assert found == code
    assert ("RuntimeError: boom" in err) == (how == "boom")
    assert {e["child"] for e in driver.events("ended")} == {"main", "other"}
    assert [event["delay_s"] for event in driver.events("ended")] == [None, None]


def test_a_child_that_is_misconfigured_is_not_started_again(start: Callable[..., Driver]) -> None:
    """It would say the same for ever. All end, with the exit code of a wrong option."""
    assert MISCONFIGURED == USAGE
    wrong = child("rank", "leave", MISCONFIGURED)
    driver = start(child("other", "stop_on_term", "other"), wrong)

    assert driver.finish() == (MISCONFIGURED, "")
    assert [event["child"] for event in driver.events("started")] == ["other", "rank"]
    assert {e["child"]: (e["delay_s"], e["stops_all"]) for e in driver.events("ended")} == {
        "other": (None, False),
        "rank": (None, True),
    }


def test_a_child_that_ran_before_is_not_misconfigured(
    start: Callable[..., Driver], tmp_path: Path
) -> None:
    """Once a life of it has lasted, what says that it cannot run is a trouble that may pass."""
    codes = tmp_path / "codes"
    codes.write_text(f"1 {MISCONFIGURED} 1 {MISCONFIGURED}" + " 1" * 20)
    driver = start(child("rank", "leave_in_turn", [str(codes)]), settled_s=0.0)
    driver.read_until(lambda _: len(driver.events("started")) == 5)

    ended = driver.events("ended")[:4]
    assert [event["code"] for event in ended] == [1, MISCONFIGURED, 1, MISCONFIGURED]
    assert [event["stops_all"] for event in ended] == [False] * 4


@pytest.mark.parametrize(("codes", "settled_s"), [("2", 0.0), ("1 2", 2 * WAIT_S)])
def test_a_child_that_never_ran_is_misconfigured(
    start: Callable[..., Driver], tmp_path: Path, codes: str, settled_s: float
) -> None:
    """However long it took to find out, and whatever ended its short lives before."""
    (tmp_path / "codes").write_text(codes)
    rank = child("rank", "leave_in_turn", [str(tmp_path / "codes")])
    driver = start(rank, settled_s=settled_s)

    assert driver.finish() == (MISCONFIGURED, "")
    assert [event["stops_all"] for event in driver.events("ended")][-1]


def test_signal_death_of_a_child_not_restarted_is_told(start: Callable[..., Driver]) -> None:
    """The exit code after a death by signal n is 128 + n, as in a shell."""
    driver = start(child("main", "sleep", WAIT_S, restart=False))
    pid = int(driver.read_words("up")[0][0])

    os.kill(pid, signal.SIGSEGV)

    assert driver.finish()[0] == 128 + signal.SIGSEGV
