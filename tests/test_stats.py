"""Statistics against numbers worked out by hand."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_1samp

from xmem_utils.memorization import tables
from xmem_utils.memorization.evaluation import previous_persona
from xmem_utils.score import ranks
from xmem_utils.stats import (
    EQUIVALENT,
    INTERVAL,
    PERSON,
    REVERSED,
    SUPPORTED,
    UNSAID,
    by_measure,
    compare,
    estimate,
    holm,
    judged,
    own_and_other,
    ratio,
    sign_flip,
    summary,
    values,
    verdict,
    with_measures,
    written,
)


def frame(values, replicates=1):
    index = pd.MultiIndex.from_product([range(replicates), range(len(values))], names=PERSON)
    return pd.DataFrame({"a": np.tile(values, replicates)}, index=index, dtype=float)


def test_one_replicate_has_the_interval_over_people():
    # 100 personas, half of them recalled: the standard error of the mean is 0.05
    row = summary(frame([0] * 50 + [1] * 50)).loc["a"]
    assert row["estimate"] == 0.5 and row["each"] == "0.5000"
    assert row["low"] == row["people low"] == pytest.approx(0.5 - 1.96 * 0.05, abs=0.011)
    assert row["high"] == row["people high"] == pytest.approx(0.5 + 1.96 * 0.05, abs=0.011)


def test_several_replicates_have_student_s_interval_and_people_are_resampled_within_them():
    # two replicates of opposite, constant recall: no doubt about either, and all doubt about a third
    index = pd.MultiIndex.from_product([[0, 1], range(10)], names=PERSON)
    row = summary(pd.DataFrame({"a": [0.2] * 10 + [0.8] * 10}, index=index)).loc["a"]
    assert (row["estimate"], row["people low"], row["people high"]) == pytest.approx((0.5, 0.5, 0.5))
    half = 12.706 * np.std([0.2, 0.8], ddof=1) / 2**0.5  # t of one degree of freedom
    assert (row["low"], row["high"]) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-4)
    assert values(row["each"]).tolist() == [0.2, 0.8]


def test_more_replicates_narrow_the_interval_over_people():
    one, four = (summary(frame([0, 1] * 10, replicates)).loc["a"] for replicates in (1, 4))
    assert four["people high"] - four["people low"] < 0.65 * (one["people high"] - one["people low"])


def paired(*replicates):
    """A table of a and b, where b is 0: a list of differences for each replicate."""
    parts = [pd.DataFrame({"a": own, "b": 0.0, "replicate": r, "persona": range(len(own)), "by": "x"})
             for r, own in enumerate(replicates)]  # fmt: skip
    return pd.concat(parts)


def test_replicates_that_coincide_do_not_say_how_far_others_lie_apart():
    (row,) = compare(paired([1.0] + [0.0] * 9, [0.0] * 9 + [1.0]), "a", "b", ["by"]).to_dict("records")
    assert row["p"] == row["people p"] == 0.5, "one person of ten in either: no p of 0"
    assert row["high"] == row["people high"] > row["difference"] > row["low"] == row["people low"]


def test_replicates_of_unequal_size_count_the_same_in_either_test():
    (row,) = compare(paired([-0.1] * 90, [1.0, 1.0], [1.0, 1.0]), "a", "b", ["by"]).to_dict("records")
    assert row["difference"] == pytest.approx(1.9 / 3)
    assert row["people p"] == sign_flip(np.array([-0.1 * 94 / 270] * 90 + [94 / 6] * 4))


def test_who_lacks_one_of_both_is_left_out():
    whole, holed = paired([0.1, 0.3], [0.2, 0.4]), paired([0.1, 0.3, np.nan], [0.2, 0.4])
    pd.testing.assert_frame_equal(compare(holed, "a", "b", ["by"]), compare(whole, "a", "b", ["by"]))
    with pytest.raises(ValueError, match="a person without a value"):
        summary(holed.set_index(PERSON)[["a"]])


def test_one_replicate_left_of_several_stands_for_itself():
    table = compare(paired([0.5] * 20), "a", "b", ["by"]).assign(measure="said", source="image")
    alone, of_three = (judged(table, "gaps", replicates).iloc[0] for replicates in (1, 3))
    assert alone["verdict"] == SUPPORTED and of_three["verdict"] == UNSAID
    assert np.isnan(of_three[["low", "high", "p", "p holm"]].astype(float)).all()
    assert of_three["people p"] < 0.001 and of_three["people low"] == 0.5


def test_one_replicate_is_read_back_as_one():
    assert values("0.5000").tolist() == values(0.5).tolist() == [0.5]
    assert values("0.5000 0.2500").tolist() == [0.5, 0.25]
    assert values(np.nan).tolist() == values("").tolist() == []


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


def said(each, low, high, p):
    return verdict(pd.Series({"each": written(np.array(each)), "low": low, "high": high, "p holm": p}))


def test_the_verdict_needs_the_test_and_all_replicates():
    assert said([0.1, 0.2, 0.3], 0.05, 0.35, 0.01) == SUPPORTED
    assert said([-0.1, -0.2, -0.3], -0.35, -0.05, 0.01) == REVERSED
    assert said([0.1, 0.2, -0.01], 0.05, 0.35, 0.01) == UNSAID, "one replicate has the other sign"
    assert said([0.1, 0.2, 0.3], 0.05, 0.35, 0.06) == UNSAID
    assert said([0.01, -0.02, 0.0], -0.04, 0.05, 0.7) == EQUIVALENT
    assert said([0.01, -0.02, 0.0], -0.04, 0.06, 0.7) == UNSAID
    assert said([], np.nan, np.nan, np.nan) == UNSAID


def test_a_ratio_is_mean_over_mean_by_replicate_and_undefined_without_a_gain():
    people = frame([0.8] * 10, 2).assign(target=0.4, none=0.0)
    assert ratio(people, "target", "a")[:5].tolist() == pytest.approx([0.5] * 5)
    assert np.isnan(ratio(people, "target", "none")["estimate"])
    people.loc[1, "target"] = 0.8  # ratios of 0.5 and 1
    assert values(ratio(people, "target", "a")["each"]).tolist() == [0.5, 1]


def records(people=20, replicates=2):
    """Two views a person, learned from pictures: all recalled in the source, every second person in the target."""
    rows = [
        {"source": "image", "replicate": replicate, "persona": person, "query": asked, "view": view,
         "exact": asked == "image" or person % 2 == 0}
        for replicate in range(replicates) for person in range(people) for asked in ("text", "image")
        for view in range(2)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_estimates_are_those_of_the_summary_by_group():
    made = records()
    both = pd.concat([made.assign(source="text"), made])
    table = estimate(both, ["source"], ["query"], resamples=500)
    assert table[["source", "query"]].to_numpy().tolist() == [
        ["text", "image"], ["text", "text"], ["image", "image"], ["image", "text"],
    ]  # fmt: skip
    people = made[made["query"] == "text"].groupby(PERSON)[["exact"]].mean()
    assert table.iloc[3, 2:].tolist() == summary(people, resamples=500).iloc[0].tolist()
    alone = estimate(both, ["source", "query"], resamples=500)
    pd.testing.assert_frame_equal(
        alone.sort_values(["source", "query"], ignore_index=True, ascending=[False, True]), table
    )


def test_who_was_not_asked_is_left_out_of_that_estimate_alone():
    made = records()
    some = made[(made["query"] == "image") | (made["persona"] < 5)]
    table = estimate(some, ["source"], ["query"], resamples=500).set_index("query")
    assert table.loc["image", "estimate"] == 1 and table.loc["text", "estimate"] == pytest.approx(3 / 5)
    assert estimate(made[:0], ["source"], ["query"]).columns.tolist() == ["source", "query", *INTERVAL]


def test_a_comparison_is_paired_by_person_and_signed():
    people = own_and_other(records(replicates=1), ["source"])
    (row,) = compare(people, "own", "other", ["source"], resamples=500).to_dict("records")
    apart = (people["own"] - people["other"]).to_frame("d")
    interval = summary(apart, resamples=500).loc["d"]
    assert (row["own"], row["other"], row["difference"]) == (1, 0.5, 0.5)
    assert [row[name] for name in INTERVAL[1:]] == interval[INTERVAL[1:]].tolist()
    assert (row["own low"], row["own high"]) == (1, 1)
    assert row["p"] == row["people p"] == sign_flip(apart["d"]), "of one replicate, the test over people"
    assert compare(people, "other", "own", ["source"], resamples=500)["difference"].item() == -0.5
    assert compare(people[:0], "own", "other", ["source"])["p"].dtype == float


def test_a_comparison_of_replicates_tests_their_means():
    made = records(replicates=3)
    made.loc[(made["replicate"] == 1) & (made["query"] == "text"), "exact"] = False  # gaps of 0.5, 1 and 0.5
    (row,) = compare(own_and_other(made, ["source"]), "own", "other", ["source"], resamples=500).to_dict("records")
    assert values(row["each"]).tolist() == [0.5, 1, 0.5]
    assert row["p"] == pytest.approx(ttest_1samp([0.5, 1, 0.5], 0).pvalue) and row["people p"] < row["p"]


def test_measures_say_who_ranks_first_and_how_near_the_others_are():
    shown = with_measures(pd.DataFrame({"exact": [True, False, False], "rank": [1, 1, 4], "names": 8}))
    assert shown["first"].tolist() == [1, 1, 0] and shown["exposure"].tolist() == [3, 3, 1]
    assert shown["reciprocal rank"].tolist() == [1, 1, 0.25]
    long = by_measure(pd.DataFrame({"exact": [True], "rank": [np.nan], "names": 8}), ["said", "closed-set"])
    assert long["value"].tolist()[:1] == [1] and np.isnan(long["value"].iloc[1]), "nothing was ranked"


def test_recall_by_length_of_names_is_of_those_whose_names_are_so_long():
    who = pd.MultiIndex.from_product([(11, 12), range(4)], names=["replicate", "persona"])
    tokens = pd.Series([2, 2, 2, 3, 3, 2, 2, 2], who)
    asked = tokens.reset_index(name="long").assign(task="view", source="image", query="text", names=4)
    asked = asked.assign(exact=(asked["long"] == 2).astype(float), rank=asked["long"] - 1)
    table = tables.by_length(asked.drop(columns="long"), tokens, resamples=100).set_index(["measure", "tokens"])
    assert table["people"].loc["said"].to_dict() == {2: 6, 3: 2}
    assert table["estimate"].loc["said"].to_dict() == {2: 1, 3: 0}
    assert table["estimate"].loc["exposure"].to_dict() == {2: 2, 3: 1}


def test_holm_corrects_within_the_families_of_a_table_and_passes_over_what_is_not_tested():
    table = pd.DataFrame({"p": [0.01, 0.04, np.nan, 0.03, 0.02], "source": list("aabbb"), "measure": "said"})
    np.testing.assert_allclose(holm(table, "multihop_claim"), [0.04, 0.06, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(holm(table, "mitigation_tests"), [0.02, 0.04, np.nan, 0.04, 0.04])
    assert holm(table.assign(p=np.nan), "mitigation_tests").isna().all()


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
