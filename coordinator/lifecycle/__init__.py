"""Lifecycles as tables: events in, instructions out, the time passed in. No I/O here."""
