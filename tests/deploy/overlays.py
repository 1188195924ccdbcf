"""What the tests of deployments share."""

from __future__ import annotations

from collections.abc import Callable

from deploy.check.manifests import Manifest

Built = Callable[[str], list[Manifest]]
"""Builds an overlay by name; a fixture."""


def find(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    """The manifest of that kind whose name begins with `name`."""
    return next(
        m for m in manifests if m["kind"] == kind and m["metadata"]["name"].startswith(name)
    )
