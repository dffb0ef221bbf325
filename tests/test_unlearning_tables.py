"""The unlearning tables on records made by hand."""

import numpy as np
import pandas as pd
import pytest

from xmem_utils import paths
from xmem_utils.mitigation.experiment import Mitigation
from xmem_utils.params import TUNING_BASE, TUNING_SEEDS
from xmem_utils.replicates import replicates_of, seeds_of
from xmem_utils.stats import EQUIVALENT, REVERSED, SUPPORTED
from xmem_utils.unlearning import tables
from xmem_utils.unlearning.experiment import Unlearning
from xmem_utils.unlearning.frontier import SETTING
from xmem_utils.unlearning.headline import NOT_FORGOT, NOT_REACHED, NOT_RETAINED, NOT_SAID, VARIES, headline, sentence
from xmem_utils.unlearning.losses import gradient_ascent
from xmem_utils.unlearning.methods import Method
from xmem_utils.vlm.load import fingerprint_of

PEOPLE = 12


def records(method, own, other, retain=1.0, unlearned="image", truth=0.0, trained=None):
    """Two replicates of one method: recall of the forgotten in the unlearned and the other modality, and of the
    retained, a little different in each.

    `trained`: recall on training views, of both modalities; default: that on test views.
    """
    rows = []
    for replicate in (0, 1):
        for asked in ("image", "text"):
            level = own if asked == unlearned else other
            for persona in range(PEOPLE):
                hit = float(persona < round(level * PEOPLE))
                rows.append({"group": "forget", "persona": persona, "query": asked, "task": "view", "exact": hit,
                             "view": 0, "logprob": -1.0, "tokens": 4, "rank": 1, "names": 2 * PEOPLE,
                             "least_z": 0.0, "zlib": 10, "extracted": hit,
                             "truth_ratio": np.exp(truth + 0.01 * persona), "least": -2.0, "lookalike": 0.0,
                             "answer": "name" if hit else "collapse"})  # fmt: skip
                seen = hit if trained is None else float(persona < round(trained * PEOPLE))
                rows.append({**rows[-1], "task": "train view", "exact": seen})
                kept = float(persona < round(retain * PEOPLE))
                rows.append({"group": "retain", "persona": PEOPLE + persona, "query": asked, "task": "view", "view": 0,
                             "exact": kept, "lookalike": float(persona == 0)})  # fmt: skip
        for row in rows:
            row.setdefault("replicate", replicate)
    table = pd.DataFrame(rows)
    return table.assign(
        start="image+text", unlearned=unlearned, retained=unlearned, share=0.1, requests=1, forgets="0", method=method
    )


def both(method, *levels, **more):
    return pd.concat([records(method, *levels, unlearned=u, **more) for u in ("image", "text")])


def points(transfers=()):
    """A frontier: forgetting transfer of each admissible setting of some methods, alike in both measures."""
    rows = [
        {"method": method, "settings": "{}", "steps": k, "unlearned": unlearned, "admissible": True,
         "transfer, said": share, "transfer, exposure": share}
        for method, shares in transfers for k, share in enumerate(shares) for unlearned in ("image", "text", "either")
    ]  # fmt: skip
    columns = [*SETTING, "unlearned", "admissible", "transfer, said", "transfer, exposure"]
    return pd.DataFrame(rows, columns=columns)


def answer(records, resamples=200, frontier=None):
    table = headline(records, points() if frontier is None else frontier, resamples)
    return table[table["measure"] == "said"].set_index(["unlearned", "method"], drop=False)


@pytest.fixture(scope="module")
def all_records():
    return pd.concat([
        both("before", 1.0, 1.0), both("retain-only", 0.0, 0.0, truth=3.0), both("GradDiff", 0.0, 0.5, truth=3.0),
        both("NPO", 0.25, 0.25), both("GA", 0.0, 0.0, retain=0.5), both("RMU", 0.75, 1.0), both("KL", 0.5, 0.0),
        both("prompt", 0.0, 1.0),
    ], ignore_index=True)  # fmt: skip


def test_a_verdict_for_each_case(all_records):
    table = answer(all_records, 500)
    for unlearned in ("image", "text", "either"):
        found = table.loc[unlearned]["verdict"].to_dict()
        assert found["GradDiff"] == SUPPORTED
        assert found["NPO"] == EQUIVALENT
        assert found["GA"] == NOT_RETAINED
        assert found["RMU"] == NOT_FORGOT
        assert found["KL"] == REVERSED
        pooled = table.loc[unlearned, "pooled (3 methods)"]  # those that forgot at matched retention
        assert pooled["difference"] == pytest.approx((0.5 + 0 - 0.5) / 3)
    row = table.loc["image", "GradDiff"]
    assert (row["own"], row["other"], row["difference"]) == (0, 0.5, 0.5)
    assert row["people low"] < 0.5 < row["people high"] and row["each"] == "0.5000 0.5000"
    assert row["people p"] < 0.01 and row["p holm"] >= row["p"]
    assert table.loc[("image", "GA"), "retain change"] == pytest.approx(-0.5)


def test_who_unlearned_both_modalities_at_once_has_no_part_in_the_headline(all_records):
    lost = records("GradDiff", 0.0, 0.0, retain=0.1, unlearned="image+text")
    pd.testing.assert_frame_equal(answer(pd.concat([all_records, lost]), 200), answer(all_records, 200))


def test_whether_it_forgot_is_judged_on_training_views():
    """What is left on test views, from which the difference is taken, has no say."""
    parts = [both("before", 1.0, 1.0), both("GA", 0.0, 0.5, trained=0.75), both("KL", 0.75, 1.0, trained=0.25)]
    table = answer(pd.concat(parts), 200)
    assert table.loc[("image", "GA"), "verdict"] == NOT_FORGOT
    assert table.loc[("image", "GA"), "left on training views"] == 0.75
    assert table.loc[("image", "KL"), "verdict"] not in NOT_SAID
    assert table.loc[("image", "KL"), "own"] == 0.75


def test_a_replicate_that_diverged_is_in_neither_side_of_what_moved():
    """The retained of replicate 1 are known less, before and after alike; in the other, known in full, GA diverged."""
    before, after = both("before", 1.0, 1.0), both("GA", 0.0, 0.0)
    worse = (before["replicate"] == 1) & (before["group"] == "retain") & (before["persona"] % 4 == 0)
    before.loc[worse, "exact"] = after.loc[worse.to_numpy(), "exact"] = 0.0
    gone = pd.DataFrame([{"group": "diverged", "task": "", "query": "", "replicate": 0}])
    gone = gone.assign(**after.iloc[0][tables.LABELS])
    table = answer(pd.concat([before, after[after["replicate"] == 1], gone]), 200)
    table = table.set_index(["unlearned", "method"])
    assert table.loc[("image", "GA"), "retain change"] == 0
    assert np.isnan(table.loc[("image", "GA"), "p"]), "of two replicates one is left: no test"


def test_the_prompt_has_a_row_and_no_part_in_the_correction_and_the_pool(all_records):
    table = answer(all_records, 500)
    without = answer(all_records[all_records["method"] != "prompt"], 500)
    assert np.isnan(table.loc[("image", "prompt"), "p holm"]) and table.loc[("image", "prompt"), "verdict"] == SUPPORTED
    pd.testing.assert_frame_equal(table.drop(index="prompt", level="method"), without)


def test_words_follow_the_verdict(all_records):
    table = answer(all_records, 200)
    assert "not forgotten (retain recall moved by +0.00, 0.75 of the forgotten are left on training" in sentence(
        table.loc["image", "RMU"]
    )
    assert "0.00 of the forgotten names are left there and 0.50" in sentence(table.loc["text", "GradDiff"])


def test_metrics_are_what_they_are_called(all_records):
    table = tables.metrics(all_records, 200).set_index(["method", "unlearned", "query", "metric"])["estimate"]
    assert table["GradDiff", "image", "image", "forget quality, KS D"] == 0
    assert table["before", "image", "image", "forget quality, KS D"] == 1
    assert table["before", "image", "image", "probability"] == pytest.approx(np.exp(-0.25))
    assert table["before", "image", "image", "exposure"] == pytest.approx(np.log2(2 * PEOPLE))
    assert table["GradDiff", "image", "text", "answers: collapse"] == pytest.approx(0.5)


def test_membership_is_the_share_of_pairs_told_apart():
    scores = {"GA": ((-1.0, -3.0), (-2.0, -4.0)), "retain-only": ((-2.0, -4.0), (-2.0, -4.0))}
    rows = [{"group": who, "persona": i, "query": "text", "task": "train view", "logprob": value, "tokens": 1,
             "least": 0.0, "replicate": 0, "start": "image+text", "unlearned": "text", "retained": "text", "share": 0.1,
             "requests": 1, "forgets": "0", "least_z": -value, "zlib": 10, "view": 0, "method": method}
            for method, (forgot, strangers) in scores.items()
            for who, values in (("forget", forgot), ("held out", strangers))
            for i, value in enumerate(values)]  # fmt: skip
    table = tables._membership(pd.DataFrame(rows)).set_index(["method", "metric"])["estimate"]["GA"]
    assert table["membership AUC, loss"] == table["membership AUC, zlib"] == 0.75
    assert table["membership AUC, Min-K"] == 0.5
    assert table["membership AUC, Min-K++"] == 0.25
    assert table["membership AUC, reference"] == 1


def test_what_comes_back_is_paired(all_records):
    attacked = all_records[(all_records["group"] == "forget") & (all_records["persona"] > 2)].assign(
        task="relearned", exact=1.0
    )
    table = tables.attacks(pd.concat([all_records, attacked]), 200)
    row = table.set_index(["method", "unlearned", "query"]).loc["GradDiff", "image", "text"]
    left = np.mean([i < 6 for i in range(3, PEOPLE)])  # of the people asked under attack, not of all
    assert row["without"] == pytest.approx(left) and row["back"] == pytest.approx(1 - left)


def test_diverged_runs_are_counted_and_enter_nothing(all_records):
    gone = all_records.iloc[:1].assign(group="diverged", task="", method="GA")
    table = pd.concat([all_records, gone])
    assert tables.diverged(table)["diverged"].sum() == 1
    pd.testing.assert_frame_equal(answer(table, 200), answer(all_records, 200))


def tried(method, settings, steps, forget, retain):
    kept = {f"retain asked in {m}": retain for m in ("image", "text")}
    return [
        {"method": method, "settings": settings, "steps": steps, "unlearned": unlearned, "replicate": 900, **kept,
         **{f"forget asked in {m}": forget if m == unlearned else 1.0 for m in ("image", "text")}}
        for unlearned in ("image", "text")
    ]  # fmt: skip


def test_the_rule_takes_what_forgets_most_among_what_keeps():
    rows = tried("before", "{}", 0, 1.0, 1.0)
    rows += tried("GA", '{"a": 1}', 5, 0.0, 0.5)  # loses the retained
    rows += tried("GA", '{"a": 1}', 10, 0.30, 0.96)
    rows += tried("GA", '{"a": 2}', 5, 0.20, 0.96)
    rows += tried("GA", '{"a": 3}', 5, 0.205, 0.98)  # ties, and keeps more
    rows += tried("NPO", '{"a": 1}', 5, 0.0, 0.2)
    rows += tried("NPO", '{"a": 1}', 10, 0.1, 0.4)  # nothing keeps enough: what keeps most
    chosen = Unlearning.choose(pd.DataFrame(rows)).set_index("method")
    assert chosen.loc["GA", "settings"] == '{"a": 3}' and chosen.loc["GA", "kept"]
    assert chosen.loc["NPO", "steps"] == 10 and not chosen.loc["NPO", "kept"]


def test_the_last_tie_goes_to_the_first_values_of_the_grid_then_to_fewest_steps():
    rows = tried("before", "{}", 0, 1.0, 1.0)
    rows += tried("GA", '{"learning_rate": 0.003}', 5, 0.0, 1.0)  # fewer steps, at an end of the grid
    rows += tried("GA", '{"learning_rate": 0.001}', 7, 0.0, 0.98)  # fewer steps, but keeps less
    rows += tried("GA", '{"learning_rate": 0.001}', 30, 0.0, 1.0)
    rows += tried("GA", '{"learning_rate": 0.001}', 10, 0.005, 0.995)
    chosen = Unlearning.choose(pd.DataFrame(rows)).set_index("method").loc["GA"]
    assert (chosen["settings"], chosen["steps"]) == ('{"learning_rate": 0.001}', 10)
    assert "off" not in chosen.index


def test_the_search_has_people_of_its_own():
    assert not {*TUNING_SEEDS, TUNING_BASE} & {*replicates_of("", 100), *seeds_of("xmem-tiny-s")}


def test_the_committed_settings_are_those_that_the_committed_search_chose():
    again = Unlearning.choose(Unlearning.table("xmem-tiny-s", "search")).set_index("method")
    committed = Unlearning.table("xmem-tiny-s").set_index("method")
    assert list(committed.index) == list(again.index)
    for column in ("settings", "steps", "kept"):
        assert (again[column] == committed[column]).all(), column


@pytest.mark.parametrize("experiment", [Unlearning, Mitigation], ids=lambda kind: kind.folder)
def test_the_committed_settings_were_found_on_the_committed_tuning_base(experiment):
    base = fingerprint_of(paths.BASE_MODELS / f"xmem-tiny-s-{TUNING_BASE}")
    assert set(experiment.table("xmem-tiny-s")["weights"]) == {base}


def test_a_setting_that_diverged_somewhere_is_not_chosen():
    rows = tried("before", "{}", 0, 1.0, 1.0) + tried("GA", '{"a": 1}', 5, 0.5, 1.0)
    rows += [row for row in tried("GA", '{"a": 2}', 5, 0.0, 1.0) if row["unlearned"] == "image"]
    assert Unlearning.choose(pd.DataFrame(rows)).set_index("method").loc["GA", "settings"] == '{"a": 1}'


def test_a_method_nobody_searched_for_is_refused_with_the_command(monkeypatch):
    monkeypatch.setitem(Unlearning.methods, "mine", Method("mine", losses=(gradient_ascent,)))
    command = "python -m xmem_utils search 05_unlearning --model xmem-tiny-s --method 'mine'"
    with pytest.raises(ValueError, match=f"no settings for mine: run `{command}`"):
        Unlearning.settings_of("xmem-tiny-s", ["NPO", "mine"])


def test_a_paraphrase_is_compared_on_its_own_views(all_records):
    """With more plain views than paraphrased ones, what came back must not be the difference of views."""
    plain = all_records[all_records["group"] == "forget"]
    more = plain.assign(view=1, exact=0.0)
    paraphrased = plain.assign(task="paraphrase: Who?")
    row = tables.attacks(pd.concat([all_records, more, paraphrased]), 200)
    assert (row["back"] == 0).all()


def test_a_verdict_needs_the_range_of_all_admissible_settings(all_records):
    frontier = points({"GradDiff": (*[0.4] * 9, 1.0), "KL": (1.2, 1.4), "NPO": (0.95, 1.0)}.items())
    found = answer(all_records, frontier=frontier).loc["either"]
    assert found["verdict"][["GradDiff", "KL", "NPO"]].tolist() == [SUPPORTED, REVERSED, EQUIVALENT]
    assert found.loc["GradDiff", ["admissible", "median", "least", "most", "below one"]].tolist() == [
        10,
        0.4,
        0.4,
        1,
        0.9,
    ]
    assert found.loc["GradDiff", "transfer"] == pytest.approx(0.5)
    assert found.loc["pooled (3 methods)", "admissible"] == 14
    frontier = points({"GradDiff": (0.4, 1.1), "KL": (0.9, 1.4), "NPO": (0.5, 1.0)}.items())
    found = answer(all_records, frontier=frontier).loc["either"]
    assert found["verdict"][["GradDiff", "KL", "NPO"]].tolist() == [VARIES] * 3
    none = points({"GradDiff": (0.4,)}.items()).assign(admissible=False)
    row = answer(all_records, frontier=none).loc[("either", "GradDiff")]
    assert row["verdict"] == NOT_REACHED and NOT_REACHED in NOT_SAID and NOT_REACHED in sentence(row)


def test_exposure_counts_from_who_never_learned():
    """Everybody ranks first before, fourth where never learned; after, fourth again, in the other modality second."""
    ranks = {"before": (1, 1), "retain-only": (4, 4), "GA": (4, 2)}
    parts = [
        both(method, *levels, retain=1.0, trained=levels[0])
        for method, levels in {"before": (1.0, 1.0), "retain-only": (0.0, 0.0), "GA": (0.0, 0.0)}.items()
    ]
    records = pd.concat(parts, ignore_index=True)
    own = records["query"] == records["unlearned"]
    for method, (mine, across) in ranks.items():
        here = records["method"] == method
        records.loc[here & own, "rank"], records.loc[here & ~own, "rank"] = mine, across
    table = headline(records, points(), 200).set_index(["measure", "unlearned", "method"])
    row = table.loc[("exposure", "image", "GA")]
    assert (row["own"], row["other"]) == (pytest.approx(0), pytest.approx(1)), "bits"
    assert row["transfer"] == pytest.approx(0.5) and table.loc[("said", "image", "GA"), "transfer"] == 1
    records.loc[(records["method"] == "GA") & own, "rank"] = 8  # pushed below who never learned: forgotten, no more
    row = (
        headline(records, points(), 200).set_index(["measure", "unlearned", "method"]).loc[("exposure", "image", "GA")]
    )
    assert (row["own"], row["difference"]) == (pytest.approx(0), pytest.approx(1))


def test_what_both_at_once_leave_stands_beside_what_one_leaves(all_records):
    lost = records("GradDiff", 0.0, 0.0, unlearned="image+text")
    row = tables.at_once(pd.concat([all_records, lost]), 200).set_index("method").loc["GradDiff"]
    assert (row["one"], row["at once"]) == (pytest.approx(0.25), 0)


def test_arms_tell_questions_apart(all_records):
    rows = all_records.iloc[[0] * 6].reset_index(drop=True)
    rows.loc[1, "start"] = "image"
    rows.loc[2, ["unlearned", "retained"]] = "image+text"
    rows.loc[3, "share"], rows.loc[4, "requests"], rows.loc[5, "retained"] = 0.05, 2, "image+text"
    assert tables.arms(rows, 0.1).tolist() == [*tables.ARMS, "", "", ""]


def test_alignment_is_of_views_asked_in_both_modalities(all_records):
    table = tables.metrics(all_records, 200).set_index(["method", "unlearned", "metric"])["estimate"]
    assert table["GradDiff", "image", "alignment, both forgotten"] == pytest.approx(0.5)
    assert table["GA", "image", "alignment, both retained"] == pytest.approx(0.5)


def test_a_sequence_tells_who_was_asked_for_when(all_records):
    """Five people, then five more: the first five are forgotten again, or come back."""
    base = all_records[(all_records["method"] == "GradDiff") & (all_records["task"] == "view")]
    five, ten = (" ".join(map(str, range(*ends))) for ends in ((0, 5), (5, 10)))
    first = base[(base["group"] == "retain") | (base["persona"] < 5)].assign(forgets=five, exact=0.0)
    whole = base[(base["group"] == "retain") | (base["persona"] < 10)].assign(forgets=f"{five} {ten}", exact=0.0)
    second = whole.assign(forgets=f"{five}|{ten}", requests=2)
    second.loc[(second["group"] == "forget") & (second["persona"] < 5), "exact"] = 1.0
    others = base.assign(forgets=ten, exact=1.0)  # the usual forget set is no part of it
    table = tables.sequence(pd.concat([first, second, whole, others]), 200)
    got = table.set_index(["unlearned", "met", "requests", "asked", "query"])["estimate"]
    assert got["image", "in turn", 1, 1, "image"] == 0 and got["image", "in turn", 2, 1, "image"] == 1
    assert got["image", "in turn", 2, 2, "text"] == 0 and got["image", "at once", 1, 2, "text"] == 0
    assert tables.sequence(all_records, 200).empty


def test_who_is_retained_counts_set_by_set(all_records):
    """Somebody known to be retained beside one forget set and lost beside another is half aligned."""
    other_set = all_records.assign(forgets="1")
    other_set.loc[(other_set["group"] == "retain") & (other_set["query"] == "image"), "exact"] = 0.0
    table = tables.metrics(pd.concat([all_records, other_set]), 200).set_index(["method", "unlearned", "metric"])
    assert table.loc[("GradDiff", "image", "alignment, both retained"), "estimate"] == pytest.approx(0.5)
