"""The supervisor with real processes: the driver runs in one, and its children are seen from here.

The functions below are the children's targets; `drive` is what the supervisor's process runs.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ditmesh.supervisor import Backoff, ChildEvent, ChildSpec, Supervisor, tell

REPOSITORY = Path(__file__).parent.parent
WAIT_S = 60.0
PR_SET_CHILD_SUBREAPER = 36
preloaded: list[int] = []


def sleep(seconds: float) -> int:
    """Ends with code 0 after a while, or by the default action of SIGTERM."""
    say(f"up {os.getpid()}")
    time.sleep(seconds)
    return 0


def leave(code: object) -> int:
    """Ends at once, with a code or by an exception."""
    if isinstance(code, str):
        raise RuntimeError(code)
    if isinstance(code, list):
        sys.exit(code[0])
    return int(str(code))


def stop_on_term(name: str) -> int:
    """Ends in order on SIGTERM and says so; Ctrl-C would be told apart."""

    def on_term(*_: object) -> None:
        say(f"{name} stopped in order")
        sys.exit(0)

    signal.signal(signal.SIGTERM, on_term)
    say(f"up {os.getpid()}")
    try:
        # In short naps: a signal that comes just before a sleep does not end it.
        for _ in range(int(WAIT_S / 0.05)):
            time.sleep(0.05)
    except KeyboardInterrupt:
        say(f"{name} interrupted")
    return 1


def ignore_term(_: object) -> int:
    """Outlives SIGTERM, and so does a process that it started."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    helper = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({WAIT_S})"])
    say(f"up {os.getpid()} {helper.pid}")
    time.sleep(WAIT_S)
    return 0


def describe(_: object) -> int:
    """Tells how this process was set up."""
    default = {
        name: signal.getsignal(getattr(signal, name))
        in (signal.SIG_DFL, signal.default_int_handler)
        for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGCHLD")
    }
    state = {
        "name": Path("/proc/self/comm").read_text().strip(),
        "leads_group": os.getpgrp() == os.getpid(),
        "default": default,
        "blocked": len(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "wakeup_fd": signal.set_wakeup_fd(-1),
        "stdin": os.readlink("/proc/self/fd/0"),
        "env": os.environ.get("DITMESH_TEST", ""),
        "preloaded": preloaded == [os.getppid()],
    }
    say("state " + json.dumps(state))
    return 0


def leave_orphan(_: object) -> int:
    """Leaves a grandchild outside its process group, which ends when it is told to."""
    program = (
        "import subprocess, sys; command = [sys.executable, '-c', 'import time; time.sleep(60)'];"
        "print('orphan', subprocess.Popen(command).pid)"
    )
    subprocess.run([sys.executable, "-c", program], start_new_session=True, check=True)
    time.sleep(WAIT_S)
    return 0


def remember() -> None:
    """A preload that marks the process it ran in."""
    preloaded.append(os.getpid())


def say(line: str) -> None:
    """One line, whole, whoever else writes."""
    os.write(1, f"{line}\n".encode())


def drive(text: str) -> None:
    """Runs a supervisor as the JSON says, printing its events."""
    options = json.loads(text)
    children = [ChildSpec(**child) for child in options.pop("children")]
    if options.pop("adopt", False):  # orphans, as process 1 does
        assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0

    def on_event(event: ChildEvent) -> None:
        say("event " + json.dumps({**asdict(event), "at": time.monotonic()}))

    sys.exit(Supervisor(children, on_event=on_event, **options).run())


class Driver:
    """A supervisor in a process of its own, and the lines that it and its children write."""

    def __init__(self, *children: dict[str, Any], **options: Any) -> None:
        text = json.dumps({"children": children, **options})
        program = (
            "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
            "from test_supervisor import drive; drive(sys.argv[1])"
        )
        path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, text],
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []

    def read_until(self, found: Callable[[list[str]], bool]) -> None:
        """Reads lines until they satisfy `found`; fails when the output ends before."""
        assert self.process.stdout is not None
        while not found(self.lines):
            line = self.process.stdout.readline()
            assert line, f"output ended: {self.lines}, {self.process.stderr.read()}"  # type: ignore[union-attr]
            self.lines.append(line.rstrip("\n"))

    def read_words(self, word: str, count: int = 1) -> list[list[str]]:
        """The words of all lines that begin with `word`, once there are `count`."""

        def matching(lines: list[str]) -> list[list[str]]:
            return [line.split()[1:] for line in lines if line.split()[0] == word]

        self.read_until(lambda lines: len(matching(lines)) >= count)
        return matching(self.lines)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one kind so far."""
        parsed = [json.loads(line[6:]) for line in self.lines if line.startswith("event ")]
        return [event for event in parsed if event["kind"] == kind]

    def finish(self) -> tuple[int, str]:
        """Waits for the end; exit code and stderr."""
        out, err = self.process.communicate(timeout=WAIT_S)
        self.lines += out.splitlines()
        return self.process.returncode, err


@pytest.fixture
def start() -> Iterator[Callable[..., Driver]]:
    drivers: list[Driver] = []

    def make(*children: dict[str, Any], **options: Any) -> Driver:
        drivers.append(Driver(*children, **options))
        return drivers[-1]

    yield make
    for driver in drivers:
        driver.process.kill()
        driver.process.communicate()


def child(name: str, function: str, args: object = None, **more: object) -> dict[str, Any]:
    return {"name": name, "target": f"test_supervisor:{function}", "args": args, **more}


def gone(pid: int) -> bool:
    """Whether a process is no more, or is a zombie that nobody waits for."""
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


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
    ):
        tell(event)
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("node3 ended with code 137; starting it again in 0.2 s (process 41)")
    assert second.endswith("node3 did not stop in time and was killed (process 42)")


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
    driver = start(child("deaf", "ignore_term"), child("good", "sleep", WAIT_S), grace_s=1.5)
    pids = [int(pid) for words in driver.read_words("up", 2) for pid in words]

    began = time.monotonic()
    driver.process.terminate()
    code, _ = driver.finish()

    assert code == 0
    assert 1.5 <= time.monotonic() - began < WAIT_S / 2
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


def test_signal_death_of_a_child_not_restarted_is_told(start: Callable[..., Driver]) -> None:
    """The exit code after a death by signal n is 128 + n, as in a shell."""
    driver = start(child("main", "sleep", WAIT_S, restart=False))
    pid = int(driver.read_words("up")[0][0])

    os.kill(pid, signal.SIGSEGV)

    assert driver.finish()[0] == 128 + signal.SIGSEGV


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_child_begins_like_a_fresh_process(start: Callable[..., Driver], method: str) -> None:
    """Default signal handlers, nothing blocked, own group and name, no stdin, its environment."""
    spec = child("rank 0", "describe", restart=False, env={"DITMESH_TEST": "yes"})
    driver = start(spec, start_method=method, preload=["test_supervisor:remember"])

    assert driver.finish()[0] == 0
    [line] = [line for line in driver.lines if line.startswith("state ")]
    assert json.loads(line[6:]) == {
        "name": "rank 0",
        "leads_group": True,
        "default": {"SIGTERM": True, "SIGINT": True, "SIGHUP": True, "SIGCHLD": True},
        "blocked": 0,
        "wakeup_fd": -1,
        "stdin": "/dev/null",
        "env": "yes",
        "preloaded": method == "fork",  # a spawned child shares nothing, so nothing is preloaded
    }


def test_forked_child_spares_atexit_and_keeps_output(tmp_path: Path) -> None:
    """Functions registered before the fork run once, in the parent; buffered output is written."""
    marks = tmp_path / "marks"
    program = (
        "import atexit, os, sys\n"
        f"def mark(): open({str(marks)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        "atexit.register(mark)\n"
        "from ditmesh.supervisor import ChildSpec, Supervisor\n"
        "print('parent', end=' ')\n"
        "code = Supervisor([ChildSpec('a', 'builtins:print', 'child', restart=False)]).run()\n"
        "print(os.getpid(), code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=60
    )
    pid = marks.read_text().strip()
    assert (done.stdout, done.stderr) == (f"parent child\n{pid} 0\n", "")


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


def test_error_in_the_supervisor_leaves_no_child(start: Callable[..., Driver]) -> None:
    """When a child cannot even be made, those that were are killed and the error is shown."""
    driver = start(
        child("a", "sleep", WAIT_S), child("b", "sleep", env={"": 1}), start_method="spawn"
    )
    code, err = driver.finish()
    assert code == 1
    assert "TypeError" in err
    assert len(driver.events("started")) == 1
    assert all(gone(event["pid"]) for event in driver.events("started"))


def test_threads_forbid_forking() -> None:
    """A preload that leaves a thread running is refused: a fork would copy locks it may hold."""
    program = (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), name='stray', daemon=True).start()\n"
        "from ditmesh.supervisor import ChildSpec, Supervisor\n"
        "Supervisor([ChildSpec('a', 'builtins:print')]).run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=REPOSITORY, timeout=60
    )
    assert done.returncode == 1
    assert "several threads: ['MainThread', 'stray']" in done.stderr


def test_names_must_differ() -> None:
    """Two children of one name could not be told apart in events."""
    with pytest.raises(ValueError, match="must differ"):
        Supervisor([ChildSpec("a", "m:f"), ChildSpec("a", "m:g")])
