"""Hypothesis without a time limit per example: the machine may be busy with ranks."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None)
settings.load_profile("no-deadline")
