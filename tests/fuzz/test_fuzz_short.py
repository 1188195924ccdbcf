"""A short fuzz run; `make fuzz` is the long one."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.run import fuzz


def test_malformed_requests_are_refused_and_do_no_harm(tmp_path: Path) -> None:
    """600 of them: no defect's status, the same process afterwards, and it still answers."""
    report = fuzz(tmp_path, seed=7, count=600, samples=2)
    assert report.sent == 600
    assert report.defects == []
    assert report.restarts == 0
    # Not all of it may be refused for one and the same reason.
    assert len(report.answers) >= 4
