"""Benchmarks: both sides do the same work, on five people."""

import sys

import pytest

from xmem_utils import paths

sys.path.append(str(paths.NOTEBOOKS))
import benchmarks


def test_contenders_take_the_same_steps(vlm, five):
    rows = list(benchmarks.training(vlm, five, count=8))
    apart = [r["value"] for r in rows if r["unit"] == "of the first loss"]
    speeds = [r for r in rows if r["unit"] == "examples/s"]
    assert len(speeds) == len(apart) + 2 and all(r["value"] > 0 for r in speeds)
    assert apart == pytest.approx([0] * len(apart), abs=0.05)


def test_ranking_and_recall_name_every_contender(vlm, five):
    table = benchmarks.table_of(benchmarks.recall(vlm, five, count=8))
    assert set(table["contender"]) == {"ours", "generate, batched", "generate, one by one", "one pass a name"}
    assert (table.loc[table["contender"] == "ours", "ours / this"] == 1).all()
