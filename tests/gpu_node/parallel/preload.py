"""Imported by the fork server of `tests.ranks`: everything that ranks need, imported once."""

from gpu_node.parallel.runtime import prepare

prepare("cpu")
