"""Options that processes share: what they accept and what telemetry they make."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from ditmesh.options import add_telemetry, bounded, host_port, port_number, telemetry_config


def parse(*arguments: str, metrics: bool = False) -> argparse.Namespace:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_telemetry(parser, metrics=metrics)
    return parser.parse_args(arguments)


@pytest.mark.parametrize(("text", "value"), [("1", 1), ("65535", 65535), (" 80", 80)])
def test_a_port_number_is_one(text: str, value: int) -> None:
    """1 to 65535."""
    assert port_number(text) == value


@pytest.mark.parametrize("text", ["0", "65536", "-1", "http", "1.5", ""])
def test_what_is_no_port_number_is_refused(text: str) -> None:
    """With words that argparse shows."""
    with pytest.raises(argparse.ArgumentTypeError):
        port_number(text)


@pytest.mark.parametrize("text", ["localhost:1", "[::1]:50050", "10.0.0.1:65535"])
def test_host_and_port_are_kept_as_they_are(text: str) -> None:
    """Names and addresses of both families."""
    assert host_port(text) == text


@pytest.mark.parametrize("text", ["localhost", ":80", "host:", "host:0", "host:65536", "host:x"])
def test_what_is_no_host_and_port_is_refused(text: str) -> None:
    """The words say what is expected."""
    with pytest.raises(argparse.ArgumentTypeError, match="host:port"):
        host_port(text)


@pytest.mark.parametrize("text", ["nan", "-0.1", "1.1", "inf", "one"])
def test_numbers_out_of_range_are_refused(text: str) -> None:
    """NaN is in no range."""
    with pytest.raises(argparse.ArgumentTypeError):
        bounded(float, 0.0, 1.0)(text)


def test_numbers_in_range_keep_their_kind() -> None:
    """Bounds are included; counts stay whole."""
    assert bounded(float, 0.0, 1.0)("1") == 1.0
    assert isinstance(bounded(int, 0, 9)("3"), int)


def test_a_trace_file_alone_means_that_traces_go_there() -> None:
    """Without it, nothing is exported; an exporter that is asked for is the only one."""
    assert telemetry_config(parse(), "node").exporters == ()
    told = telemetry_config(parse("--trace-file", "t.jsonl"), "node")
    assert (told.exporters, told.trace_file) == (("file",), Path("t.jsonl"))
    both = parse("--trace-file", "t.jsonl", "--exporter", "console")
    assert telemetry_config(both, "node").exporters == ("console",)


def test_metrics_are_served_by_the_process_that_is_to_serve_them() -> None:
    """Of several processes with the same options, one can have the port."""
    arguments = parse("--prometheus", "127.0.0.1:9100", metrics=True)
    assert telemetry_config(arguments, "node").prometheus_address == ""
    served = telemetry_config(arguments, "coordinator", "here", metrics=True)
    assert served.prometheus_address == "127.0.0.1:9100"
    assert (served.service_name, served.service_instance) == ("coordinator", "here")


def test_a_process_that_serves_no_metrics_has_no_option_for_it() -> None:
    """Rather than one that does nothing."""
    assert not hasattr(parse(), "prometheus")
    assert telemetry_config(parse(), "node").prometheus_address == ""
