"""Statistics against numbers worked out by hand."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from xmem_utils.memorization.evaluation import previous_persona
from xmem_utils.score import ranks
from xmem_utils.stats import agreed, cluster_bootstrap, compare, estimate, holm, own_and_other, ratio, sign_flip


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


def test_a_ratio_is_mean_over_mean_and_undefined_without_a_gain():
    people = frame([0.8] * 10).assign(target=0.4, none=0.0)
    assert ratio(people, "target", "a") == pytest.approx((0.5, 0.5, 0.5))
    assert np.isnan(ratio(people, "target", "none")).all()


def records(people=20, seeds=2):
    """Two views a person, learned from pictures: all recalled in the source, every second person in the target."""
    rows = [
        {"source": "image", "seed": seed, "persona": person, "query": asked, "view": view,
         "exact": asked == "image" or person % 2 == 0}
        for seed in range(seeds) for person in range(people) for asked in ("text", "image") for view in range(2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_estimates_are_those_of_the_bootstrap_by_group():
    made = records()
    both = pd.concat([made.assign(source="text"), made])
    table = estimate(both, ["source"], ["query"], resamples=500)
    assert table[["source", "query"]].to_numpy().tolist() == [
        ["text", "image"], ["text", "text"], ["image", "image"], ["image", "text"],
    ]  # fmt: skip
    people = made[made["query"] == "text"].groupby(["seed", "persona"])[["exact"]].mean()
    assert table.iloc[3, 2:].tolist() == cluster_bootstrap(people, 500).iloc[0].tolist()
    alone = estimate(both, ["source", "query"], resamples=500)
    pd.testing.assert_frame_equal(
        alone.sort_values(["source", "query"], ignore_index=True, ascending=[False, True]), table
    )


def test_who_was_not_asked_is_left_out_of_that_estimate_alone():
    made = records()
    some = made[(made["query"] == "image") | (made["persona"] < 5)]
    table = estimate(some, ["source"], ["query"], resamples=500).set_index("query")
    assert table.loc["image", "estimate"] == 1 and table.loc["text", "estimate"] == pytest.approx(3 / 5)
    assert estimate(made[:0], ["source"], ["query"]).columns.tolist() == ["source", "query", "estimate", "low", "high"]


def test_a_comparison_is_paired_by_person_and_signed():
    people = own_and_other(records(), ["source"])
    (row,) = compare(people, "own", "other", ["source"], resamples=500).to_dict("records")
    apart = (people["own"] - people["other"]).to_frame("d")
    interval = cluster_bootstrap(apart, 500).loc["d"]
    assert (row["own"], row["other"], row["difference"]) == (1, 0.5, 0.5)
    assert (row["low"], row["high"]) == (interval["low"], interval["high"])
    assert (row["own low"], row["own high"]) == (1, 1)
    assert row["p"] == sign_flip(apart["d"])
    assert compare(people, "other", "own", ["source"], resamples=500)["difference"].item() == -0.5
    assert compare(people[:0], "own", "other", ["source"])["p"].dtype == float


def test_holm_corrects_within_families_and_passes_over_what_is_not_tested():
    p = pd.Series([0.01, 0.04, np.nan, 0.03, 0.02])
    np.testing.assert_allclose(holm(p), [0.04, 0.06, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(holm(p, pd.Series(list("aabbb"))), [0.02, 0.04, np.nan, 0.04, 0.04])
    assert holm(pd.Series([np.nan, np.nan])).isna().all()


def test_tables_and_plots_load_no_library_of_models():
    rooms = ("memorization", "unlearning", "multihop", "mitigation", "mechanism")
    modules = ", ".join(["xmem_utils.plots", *(f"xmem_utils.{room}.tables" for room in rooms)])
    code = f"import sys, {modules}; print({{'torch', 'peft', 'transformers'}} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "set()\n"


def test_ties_count_against_the_true_name():
    scores = np.array([[-1.0, -2.0, -3.0], [-2.0, -2.0, -2.0], [-1.0, -3.0, -2.0]])
    assert ranks(scores, np.array([0, 1, 1])).tolist() == [1, 3, 3]


def test_shuffled_views_are_always_somebody_elses():
    asked = np.array([0, 0, 0, 1, 4, 4])
    assert previous_persona(asked).tolist() == [4, 4, 4, 0, 1, 1]
