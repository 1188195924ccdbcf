"""The chaos in small: a dozen faults of a dozen kinds, each in the middle of a job."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos import jobs, overload
from tests.chaos.faults import SHORT
from tests.chaos.run import Chaos
from tests.chaos.site import Site

SEED = 12


@pytest.mark.timeout(600)
def test_no_fault_loses_a_job(tmp_path: Path) -> None:
    """Every job ends with the latent of an undisturbed run, whatever dies, hangs or breaks. Jobs
    that are cancelled leave no file open in any process.

    Leaving the block fails for processes and shared memory that are left behind.
    """
    hit, beside = jobs.plan(SEED, jobs=16, faults=12, kinds=SHORT, steps=16)
    lines: list[str] = []
    with Site(tmp_path, ranks=2) as site:
        chaos = Chaos(site, steps=16, tell=lines.append)
        chaos.sample_references({planned.recipe for planned in (*hit, *beside)})
        chaos.run(hit, beside)
        site.wait(site.whole, "the whole group")
        grown = overload.cancel_jobs(site, 40, warm=20)
    story = "\n".join(lines)
    assert not [report for report in chaos.reports if report.lost or report.wrong], story
    counted = {report.fault for report in chaos.reports if report.counted}
    assert counted == {fault.name for fault in SHORT}, story
    assert not [name for name, growth in grown.items() if growth.files > 0], grown
