"""Statistics against numbers worked out by hand."""

import numpy as np
import pandas as pd
import pytest

from xmem_utils.memorization.experiment import previous_persona
from xmem_utils.score import ranks
from xmem_utils.stats import agreed, cluster_bootstrap, sign_flip, transfer_ratio


def frame(values, seeds=1):
    index = pd.MultiIndex.from_product([range(seeds), range(len(values))], names=["seed", "persona"])
    return pd.DataFrame({"a": np.tile(values, seeds)}, index=index, dtype=float)


def test_interval_of_a_proportion_matches_the_binomial():
    # 100 personas, half of them recalled: the standard error of the mean is 0.05
    row = cluster_bootstrap(frame([0] * 50 + [1] * 50)).loc["a"]
    assert row["estimate"] == 0.5
    assert row["low"] == pytest.approx(0.5 - 1.96 * 0.05, abs=0.011)
    assert row["high"] == pytest.approx(0.5 + 1.96 * 0.05, abs=0.011)


def test_personas_are_resampled_within_seeds():
    # two seeds of opposite, constant recall: resampling within seeds leaves no doubt about the mean
    index = pd.MultiIndex.from_product([[0, 1], range(10)], names=["seed", "persona"])
    row = cluster_bootstrap(pd.DataFrame({"a": [0.0] * 10 + [1.0] * 10}, index=index)).loc["a"]
    assert (row["estimate"], row["low"], row["high"]) == (0.5, 0.5, 0.5)


def test_more_seeds_narrow_the_interval():
    one, four = (cluster_bootstrap(frame([0, 1] * 10, seeds=s)).loc["a"] for s in (1, 4))
    assert four["high"] - four["low"] < 0.65 * (one["high"] - one["low"])


def test_sign_flip_counts_the_flips_as_extreme_as_what_was_seen():
    # four equal differences: only 2 of 16 sign patterns are as extreme, so p = 1/8
    assert sign_flip(np.ones(4)) == 1 / 8
    assert sign_flip(np.array([1.0, -1.0])) == 1.0
    assert sign_flip(np.ones(50)) == pytest.approx(1 / 10_001)
    # many flips of many differences come near the exact value, which many flips allow to enumerate
    d = np.array([3.0, 1.0, 1.0, 2.0, -1.0, 2.0, 1.0, 1.0, 1.0, 2.0, -2.0, 1.0, 1.0, 1.0])
    assert sign_flip(d) == pytest.approx(sign_flip(d, flips=2**14), abs=0.01)


def test_p_is_never_below_the_smallest_possible():
    few = np.array([0.25] * 5 + [0.0] * 15)  # five of twenty differ: 2 of 32 patterns
    assert sign_flip(few) == 1 / 16
    assert sign_flip(np.zeros(5)) == 1.0
    assert 0 < sign_flip(np.full(13, 0.5)) == 2 / 2**13


def test_an_effect_is_shown_when_interval_and_test_agree():
    assert [agreed(0.1, 0.3, 0.01), agreed(0.1, 0.3, 0.06), agreed(-0.1, 0.3, 0.01), agreed(-0.3, -0.1, 0.01)] == [
        1,
        0,
        0,
        -1,
    ]


def test_transfer_ratio_is_gain_over_gain_and_undefined_without_gain():
    assert transfer_ratio(0.9, 0.5, 0.1, 0.1) == pytest.approx(0.5)
    assert np.isnan(transfer_ratio(0.1, 0.5, 0.1, 0.1))


def test_ties_count_against_the_true_name():
    scores = np.array([[-1.0, -2.0, -3.0], [-2.0, -2.0, -2.0], [-1.0, -3.0, -2.0]])
    assert ranks(scores, np.array([0, 1, 1])).tolist() == [1, 3, 3]


def test_shuffled_views_are_always_somebody_elses():
    asked = np.array([0, 0, 0, 1, 4, 4])
    assert previous_persona(asked).tolist() == [4, 4, 4, 0, 1, 1]
