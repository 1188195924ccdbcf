"""What more ranks bring: one against two on two cores, and bytes and time against Ulysses'."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from bench.measure import Contestant, Options, Skipped, alternate
from bench.rank_group import RankGroup, Work
from bench.results import Comparison, Goal, SuiteResult, Table
from ditmesh.mesh import MeshSpec

TITLE = "Scaling"

_LEAST_SPEEDUP = 1.8
_ITEM_BYTES = 4
_WIDE: dict[str, Any] = {
    "in_channels": 64,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 128,
    "num_attention_heads": 12,
    "joint_attention_dim": 256,
    "pooled_projection_dim": 64,
    "guidance_embeds": False,
    "axes_dims_rope": (16, 56, 56),
}
_NARROW: dict[str, Any] = {
    **_WIDE,
    "num_single_layers": 2,
    "num_attention_heads": 8,
    "attention_head_dim": 32,
    "axes_dims_rope": (8, 12, 12),
}
_TEXT_TOKENS = 256
_ONE, _TWO = MeshSpec((0,)), MeshSpec((1,))
_ULYSSES, _SPLIT = MeshSpec((0, 1), ulysses=2), MeshSpec((0, 1), cfg=2)


def run(options: Options) -> SuiteResult:
    """Measure."""
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        raise Skipped("two ranks need two cores")
    comparisons, goals = _speedup(options)
    table = _degrees(options, cores)
    return SuiteResult(comparisons, [table], goals)


def _speedup(options: Options) -> tuple[list[Comparison], list[Goal]]:
    image = Work(64, 32 if options.quick else 128, _TEXT_TOKENS)
    guided = replace(image, branches=2)
    rounds = options.rounds(5, 3)
    with RankGroup(2, _WIDE, (_ONE, _TWO, _ULYSSES, _SPLIT)) as group:
        plain = alternate(
            {
                "1 rank": _task(group, [_ONE], image),
                "ditmesh, 2 ranks, Ulysses": _task(group, [_ULYSSES], image),
                "2 ranks, an image each": _task(group, [_ONE, _TWO], image),
            },
            rounds,
        )
        branches = alternate(
            {
                "1 rank": _task(group, [_ONE], guided),
                "ditmesh, 2 ranks, cfg split": _task(group, [_SPLIT], guided),
            },
            rounds,
        )
    tokens = image.rows * image.columns // 4 + _TEXT_TOKENS
    width = _WIDE["num_attention_heads"] * _WIDE["attention_head_dim"]
    comparisons = [
        Comparison(f"{tokens} tokens of width {width}", "ms a step", plain, baseline="1 rank"),
        Comparison("the same with guidance", "ms a step", branches, baseline="1 rank"),
    ]
    limit = 2 / comparisons[0].ratio("2 ranks, an image each")
    speedups = {
        "Ulysses": 1 / comparisons[0].ratio("ditmesh, 2 ranks, Ulysses"),
        "cfg split": 1 / comparisons[1].ratio("ditmesh, 2 ranks, cfg split"),
    }
    goals = [
        Goal(
            f"2 ranks on 2 cores, {name} (two that share nothing: {limit:.2f})",
            speedup,
            _LEAST_SPEEDUP,
            "x",
            at_least=True,
        )
        for name, speedup in speedups.items()
    ]
    return comparisons, goals


def _task(group: RankGroup, meshes: Sequence[MeshSpec], work: Work) -> Contestant:
    return lambda: 1e3 * max(answer.seconds for answer in group.evaluate(meshes, work))


def _degrees(options: Options, cores: int) -> Table:
    """Time and bytes of a step for each degree. Ranks beyond the cores take turns on them."""
    degrees = [degree for degree in (1, 2, 4, 8) if degree <= options.ranks]
    meshes = [MeshSpec(tuple(range(degree)), ulysses=degree) for degree in degrees]
    work = Work(32, 32, _TEXT_TOKENS)
    with RankGroup(max(degrees), _NARROW, meshes) as group:
        contestants = {
            str(degree): _task(group, [mesh], work)
            for degree, mesh in zip(degrees, meshes, strict=True)
        }
        times = alternate(contestants, options.rounds(9, 3))
        rows = []
        for degree, mesh in zip(degrees, meshes, strict=True):
            counted = group.evaluate([mesh], work, count_traffic=True)[0]
            taken = median(times[str(degree)])
            alone = median(times["1"])
            rows.append(
                [
                    degree,
                    taken,
                    alone / min(degree, cores),
                    counted.received_bytes / 2**20,
                    ulysses_bytes(work, degree) / 2**20,
                    counted.collectives,
                ]
            )
    header = (
        "ranks",
        "ms a step",
        f"ms if {cores} cores shared all of it",
        "MiB received a rank and step",
        "MiB by Ulysses' formula",
        "collectives",
    )
    return Table("Ulysses degrees", header, rows)


def ulysses_bytes(work: Work, degree: int) -> float:
    """Bytes that a rank receives in a step, from https://arxiv.org/abs/2309.14509.

    In each block a rank exchanges its share of queries, keys, values and outputs, each of
    tokens / degree x width, and keeps 1 / degree of it; at the end each gets the others' tokens.
    """
    image = work.rows * work.columns // 4
    width = _NARROW["num_attention_heads"] * _NARROW["attention_head_dim"]
    blocks = _NARROW["num_layers"] + _NARROW["num_single_layers"]
    others = (degree - 1) / degree
    exchanged = 4 * blocks * (image + work.text_tokens) / degree * width * others
    gathered = image * _NARROW["in_channels"] * others
    return float(_ITEM_BYTES * (exchanged + gathered))
