"""What a coordinator cannot begin with."""

from __future__ import annotations

import argparse

import pytest

from coordinator import app, server
from ditmesh.supervisor import MISCONFIGURED


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--listen", "0.0.0.0:50050"], "can be reached from other machines"),
        (["--nodes", "a:1,b:1", "--mesh", "ulysses=3"], "needs 3 ranks"),
    ],
)
def test_what_is_not_tried_again(
    options: list[str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An address without protection, degrees that no group can have: it says so, and tells its
    supervisor that to start it again would not help.
    """
    parser = argparse.ArgumentParser()
    app.add_arguments(parser)
    config = app.configuration(parser.parse_args(options), "")
    assert server.run(config) == MISCONFIGURED
    assert words in caplog.text
