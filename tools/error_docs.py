"""Writes the table in `docs/errors.md` from `ditmesh.errors`; with --check, tells of drift."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from ditmesh.errors import DitmeshError, by_reason

TARGET = Path(__file__).resolve().parent.parent / "docs" / "errors.md"

# What a caller does about each error; main() fails when one is missing or is no more.
REACTIONS = {
    "INVALID_REQUEST": "Correct the field that `BadRequest` names; the message says what is right.",
    "INVALID_TENSOR": "Correct the tensor: its type, shape, byte count, hash or values.",
    "LIMIT_EXCEEDED": "Send less: fewer or smaller pictures, shorter text. Waiting does not help.",
    "PROTOCOL_ERROR": "A defect of the client: compare its order of messages with the contract.",
    "INVALID_MESH": "For operators: choose degrees that the ranks and the model's heads allow.",
    "UNKNOWN_MODEL": "Ask `ClusterService.GetCluster` which models there are.",
    "UNKNOWN_JOB": "Send the job with its whole spec.",
    "JOB_EXISTS": "Choose another `job_id`, or repeat the exact spec to take that job up again.",
    "DAMAGED_MODEL": "Tell the operator: a model file must be replaced.",
    "OVERLOADED": "Wait as long as `RetryInfo` says, then send the same request again.",
    "JOB_CANCELLED": "Nothing: it was asked for, or nobody came back to a broken stream.",
    "DEADLINE_EXCEEDED": "Allow more time, or ask for less: fewer steps, a smaller picture.",
    "UNAUTHENTICATED": "Send a valid token, or a certificate that the server's authority signed.",
    "UNAVAILABLE": "Wait as long as `RetryInfo` says, then send the same request again.",
    "DRAINING": "Send the same request again: another coordinator, or the restarted one, takes it.",
    "LOADING": "Clients never see it: the coordinator asks the node again once it is through.",
    "STALE_EPOCH": "Clients never see it: the coordinator moves the job to the new group.",
    "EXECUTOR_FAILED": "Send the job under a new id, from the last state if you have one.",
    "GROUP_LOST": "Send the job under a new id: the group forms anew. Or allow the fallback.",
    "RANKS_DIFFER": "As after `GROUP_LOST`; if it comes again, a GPU miscomputes.",
    "BAD_RESULT": "Try another seed or sampler, or smaller weight changes; else tell the operator.",
    "INTERNAL_ERROR": "Report it with the trace id of the job; the server's log has the traceback.",
}

_BEGIN = "<!-- tools/error_docs.py writes this table from ditmesh/errors.py -->\n"
_END = "<!-- end of the table -->\n"
_HEAD = """
| reason | code | retry | meaning | what the caller does |
|---|---|---|---|---|
"""


def rows() -> Iterator[str]:
    """One row of the table for each error, in the order of the tree."""
    for reason, kind in by_reason().items():
        if kind is DitmeshError:
            continue
        meaning = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        yield (
            f"| `{reason}` | `{kind.code.name}` | {kind.retry.value} "
            f"| {meaning} | {REACTIONS[reason]} |"
        )


def main() -> int:
    """Generate, or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail on drift")
    check = parser.parse_args().check
    reasons = {reason for reason, kind in by_reason().items() if kind is not DitmeshError}
    if reasons != REACTIONS.keys():
        differing = ", ".join(sorted(reasons ^ REACTIONS.keys()))
        print(f"tools/error_docs.py and ditmesh/errors.py differ in: {differing}", file=sys.stderr)
        return 1
    page = TARGET.read_text()
    start, stop = page.index(_BEGIN) + len(_BEGIN), page.index(_END)
    fresh = page[:start] + _HEAD + "\n".join(rows()) + "\n\n" + page[stop:]
    if not check:
        TARGET.write_text(fresh)
        return 0
    if page == fresh:
        return 0
    print(
        "docs/errors.md is not what ditmesh/errors.py gives; run python tools/error_docs.py",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
