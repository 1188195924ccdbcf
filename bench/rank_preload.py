"""Imported by the process that ranks are forked from, so that each starts in an instant."""

from gpu_node.app import preload_cpu

preload_cpu()
