"""A job's progress on terminals and elsewhere."""

from __future__ import annotations

import io

import pytest

from ditmesh.cli.progress import ProgressView
from ditmesh.cli.tables import counted, size_of, table
from ditmesh.client import Accepted, Event, Progress, Queued, Retrying


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        """As a terminal's."""
        return True


def shown(stream: io.StringIO, events: list[Event], **environment: str) -> str:
    """What a view writes for events that come half a second apart."""
    now = [0.0]
    view = ProgressView(stream, environment=environment, clock=lambda: now[0])
    for event in events:
        view.show(event)
        now[0] += 0.5
    return stream.getvalue()


def steps(count: int) -> list[Event]:
    """All steps of a job."""
    return [Progress(i + 1, count, 0.5, "group") for i in range(count)]


def test_terminal() -> None:
    """On a terminal one line is drawn again and again, green, with the pace and what is left."""
    text = shown(Terminal(), [Accepted("j", 4, 0, False), *steps(4)])
    lines = text.split("\r\x1b[2K")
    assert "\n" not in text
    assert "█" * 15 in lines[2]
    assert "\x1b[32m" in lines[2]
    assert lines[2].endswith("step 2/4 on group  0.50 s/step  1 s left")
    assert "░" not in lines[4]


def test_finished_bar_stays() -> None:
    """What follows a job stands below its bar; where no bar was drawn there is no empty line."""
    stream = Terminal()
    view = ProgressView(stream, environment={})
    view.leave()
    assert stream.getvalue() == ""
    view.show(Progress(1, 1, 0.0, "group"))
    view.leave()
    assert stream.getvalue().endswith("step 1/1 on group\n")


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}])
def test_no_color(environment: dict[str, str]) -> None:
    """NO_COLOR keeps the bar and takes the colour."""
    text = shown(Terminal(), steps(2), **environment)
    assert "█" in text
    assert "\x1b[32m" not in text


def test_empty_no_color_does_not_count() -> None:
    """An empty NO_COLOR is none, as its standard says."""
    assert "\x1b[32m" in shown(Terminal(), steps(2), NO_COLOR="")


def test_terminal_without_unicode() -> None:
    """A terminal that knows ASCII only gets ASCII."""

    class Ascii(Terminal):
        encoding = "ascii"

    text = shown(Ascii(), steps(2))
    assert text.isascii()
    assert "#" in text


@pytest.mark.parametrize(
    ("stream", "environment"), [(io.StringIO(), {}), (Terminal(), {"TERM": "dumb"})]
)
def test_plain(stream: io.StringIO, environment: dict[str, str]) -> None:
    """A file or a dumb terminal gets about ten plain lines, the last step among them."""
    stream.truncate(0)
    stream.seek(0)
    lines = shown(stream, steps(95), **environment).splitlines()
    assert len(lines) == 11
    assert lines[0] == "step 9/95 on group  0.50 s/step"
    assert lines[-1] == "step 95/95 on group  0.50 s/step"
    assert "\x1b" not in "".join(lines)


def test_queue_and_reattachment_are_said() -> None:
    """Jobs before this one, why the client tries again, and a stream that was taken up again."""
    events: list[Event] = [
        Retrying("Cannot reach the coordinator.", 2, 0.1),
        Retrying("Cannot reach the coordinator.", 3, 0.2),
        Accepted("j", 4, 2, False),
        Queued(1),
        Queued(0),
        Accepted("j", 4, 0, True),
    ]
    assert shown(io.StringIO(), events).splitlines() == [
        "trying again: Cannot reach the coordinator.",
        "queued: 2 jobs before this one",
        "queued: 1 job before this one",
        "the stream broke and was taken up again",
    ]


def test_table() -> None:
    """Columns are as wide as their widest cell; numbers stand to the right, lines end clean."""
    assert table(("name", "n", "note"), [("a", 5, "x"), ("long", 10, "")]).splitlines() == [
        "name   n  note",
        "a      5  x",
        "long  10",
    ]


def test_words() -> None:
    """Counts agree with their nouns; bytes are told in units."""
    assert (counted(1, "step"), counted(0, "step")) == ("1 step", "0 steps")
    assert [size_of(n) for n in (5, 2048, 3 << 30, 5 << 40)] == [
        "5 B",
        "2.0 KiB",
        "3.0 GiB",
        "5.0 TiB",
    ]
