"""A coordinator that restarts with nothing remembered: its jobs are sent, and sampled, again."""

from __future__ import annotations

import os
import signal
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ditmesh.client import Accepted, Progress
from tests.chaos.run import TOLERANCE
from tests.chaos.site import Site
from tests.e2e.jobs import random_job

STEPS = 200


@pytest.mark.timeout(300)
def test_without_a_journal_a_job_is_sampled_again_and_never_twice_at_once(tmp_path: Path) -> None:
    """The client sends it again under its id. The ranks let the first run go before the second
    begins: no step of the one is worked on while the other has begun.
    """
    job = random_job(1, steps=STEPS, size=(1, 16, 16))
    with Site(tmp_path, ranks=2, journal=False) as site:
        expected = site.user.sample(**job).latent
        resumed, killed = [], False
        with site.user.start(**job) as handle:
            for event in handle:
                if isinstance(event, Accepted):
                    resumed.append(event.resumed)
                elif isinstance(event, Progress) and event.step >= 5 and not killed:
                    os.kill(site.coordinator_pid(), signal.SIGKILL)
                    killed = True
            result = handle.result()
        assert resumed == [False, False]
        assert result.summary.segments[0].first_step == 0
        assert result.summary.segments[-1].end_step == STEPS
        assert np.abs(result.latent - expected).max() <= TOLERANCE

        def worked() -> list[tuple[int, int]]:
            """When each run of the job worked on its steps, from and to, in order."""
            trace = site.trace(handle.trace_id)
            runs = [s["span_id"] for s in trace if s["name"] == "ditmesh.v1.NodeService/Run"]
            steps = {run: [] for run in runs}
            for span in trace:
                if span["name"] == "step" and span["parent_span_id"] in steps:
                    steps[span["parent_span_id"]].append(span)
            return sorted(
                (min(s["start_unix_ns"] for s in of), max(s["end_unix_ns"] for s in of))
                for of in steps.values()
                if of
            )

        site.wait(lambda: len(worked()) == len(result.summary.segments) + 1, "spans of each run")
        times = worked()
        assert all(end <= start for (_, end), (start, _) in pairwise(times))
