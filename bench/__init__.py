"""Benchmarks: ditmesh beside the alternatives, in one run, in alternating order.

    python -m bench                  every suite, then docs/performance.md
    python -m bench overhead --reps 3
    python -m bench --quick
    python -m bench --report         only docs/performance.md, from the results that are there

A suite is a module of `bench.suites` with `TITLE` and `run(options) -> SuiteResult`. Results are
JSON; the tables and plots of docs/performance.md are made from it, so that no figure is typed.
"""
