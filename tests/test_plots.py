"""Every figure of the study drawn from its committed table."""

import itertools
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from xmem_utils import paths, plots
from xmem_utils.memorization.tables import DOSES
from xmem_utils.plots.parts import ANSWERED, footnote

COMMITTED = paths.REPO / "figures"


def table(name):
    """A committed table as the notebooks hold it: "none" and "" are values."""
    read = pd.read_csv(COMMITTED / f"{name}.csv", keep_default_na=False, na_values=["", "nan"])
    return read.fillna({"given": ""}) if "given" in read else read


def base_curves():
    read = table("base_model_curves")
    return plots.base_curves(*(read[read["stage"] == s].dropna(axis=1).drop(columns="stage") for s in ("eye", "chat")))


def small_slope():
    fitted = table("capability_slopes").set_index(["model", "source"]).loc[("xmem-tiny-s", "image")]
    return "xmem-tiny-s from pictures: slope {estimate:.2f} [{low:.2f}, {high:.2f}]".format(**fitted)


def chosen():
    return pd.read_csv(paths.BASE_MODELS / "xmem-tiny-s-2026" / "unlearning_settings.csv")


def matrix_and_answers():
    """The two tables of which the committed one is made."""
    both = table("unlearning_matrix")
    return both[both["metric"].isna()], both[both["metric"].notna()]


FIGURES = {  # by name: how it is drawn, panels, words in its legend
    "base_model_curves": (base_curves, 3, {"from pictures", "alignment probe, descriptions", "attributes told apart"}),
    "base_model_evaluation": (lambda: plots.base_evaluation(table("base_model_evaluation")), 1,
                              {"from pictures", "from descriptions"}),
    "persona_attributes": (lambda: plots.attribute_counts(table("persona_attributes")), 8,
                           {"expected of a uniform draw"}),
    "gap_matrix": (lambda: plots.gap_matrix(table("gap_matrix"), ""), 2,
                   {"chance, closed-set (1%)", "blank image, said", "right name first among the study's"}),
    "gap_curves": (lambda: plots.gap_curves(table("gap_curves"), 0.01), 3, {"one replicate", "chance", "no gap"}),
    "gap_answers": (lambda: plots.answers(table("gap_answers")), 2, {"name", "nobody's name", "collapse"}),
    "attributes_by_name": (lambda: plots.attributes_by_name(table("attributes_by_name")), 1,
                           {"base model, before", "names learned from pictures", "chance"}),
    "dose_response": (lambda: plots.dose_response(table("dose_response"), 0.01, 0.9, DOSES), 8,
                      {"memorized: source at least 90%", "learned from pictures, asked with descriptions"}),
    "capability": (lambda: plots.capability(table("capability"), 0.01), 4, {"gap, names said", "gap, closed-set"}),
    "capability_slope": (lambda: plots.capability_slope(table("capability_slope"), table("capability_slopes")), 2,
                         {"no gap", small_slope()}),
    "capability_knowledge": (lambda: plots.capability_knowledge(table("capability_knowledge"), 0.01), 2,
                             {"chance for a study name"}),
    "capability_probe": (lambda: plots.capability_probe(table("capability_probe")), 2,
                         {"xmem-tiny-xs", "hollow: closed-set"}),
    "unlearning_headline": (lambda: plots.unlearning_transfer(table("unlearning_headline")), 2,
                            {"all settings, from pictures", "unlearned from descriptions, the chosen setting",
                             "the other modality forgets as much"}),
    "unlearning_frontier": (lambda: plots.unlearning_frontier(table("unlearning_frontier"), chosen()), 12,
                            {"admissible", "chosen by the rule"}),
    "unlearning_matrix": (lambda: plots.unlearning_matrix(*matrix_and_answers(), {"prompt"}), 8,
                          {"forgotten, answered: refusal", "retained: name said",
                           "forgotten: name said, with interval"}),
    "unlearning_sequence": (lambda: plots.unlearning_sequence(table("unlearning_sequence")), 4,
                            {"forgotten first, asked with pictures", "all at once, asked with descriptions"}),
    "unlearning_curves": (lambda: plots.unlearning_curves(table("unlearning_curves")), 24,
                          {"retained, asked with pictures"}),
    "unlearning_tradeoff": (lambda: plots.unlearning_tradeoff(table("unlearning_tradeoff"), 0.95), 2,
                            {"before unlearning", "NPO", "5 points below before"}),
    "unlearning_attacks": (lambda: plots.unlearning_attacks(table("unlearning_attacks")), 8,
                           {"forgotten people, asked with descriptions"}),
    "multihop": (lambda: plots.multihop(table("multihop")), 3,
                 {"shown a name alone", "grey label: not above chance in the source"}),
    "multihop_controls": (lambda: plots.multihop_controls(table("multihop_controls")), 3,
                          {"grey label: not above chance in the source"}),
    "multihop_decomposition": (lambda: plots.multihop_decomposition(table("multihop_decomposition")), 2,
                               {"composed", "if hops were independent"}),
    "multihop_curves": (lambda: plots.multihop_curves(table("multihop_curves"), 0.04), 8, {"chance"}),
    "mitigation": (lambda: plots.mitigation(table("mitigation"), table("mitigation_tests")), 2,
                   {"above it in all replicates, p < 0.05", "below it likewise",
                    "the baseline that a row is held against", "perception ceiling, asked with pictures"}),
    "claims": (lambda: plots.claims(table("claims")), 1, {"supported", "within ±0.05"}),
    "mitigation_pairs": (lambda: plots.mitigation_pairs(table("mitigation_pairs")), 2, {"nobody is paired: baseline"}),
    "decomposition": (lambda: plots.decomposition(table("decomposition")), 2, {"perception part", "recall part"}),
    "mechanism": (lambda: plots.mechanism(table("mechanism"), "baseline"), 6,
                  {"target, before anything is memorized", "chance", "best method, shown pictures"}),
    "mechanism_controls": (lambda: plots.mechanism_controls(table("mechanism_controls")), 24,
                           {"target, before anything is memorized", "compared or learned within pictures"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_stands_on_its_committed_table(name, tmp_path, monkeypatch):
    draw, panels, words = FIGURES[name]
    plots.style()
    figure = draw()
    assert len(figure.axes) == panels
    legend = {text.get_text() for legend in figure.legends for text in legend.get_texts()}
    assert words <= legend
    monkeypatch.setattr(paths, "FIGURES", tmp_path)
    plots.save(figure, name, table(name))
    assert {file.suffix for file in tmp_path.iterdir()} == {".png", ".svg", ".csv"}
    assert "<text" in (tmp_path / f"{name}.svg").read_text("utf-8")  # can be searched, selected, read aloud
    plt.close(figure)


def test_every_estimate_and_every_interval_is_drawn():
    """Of the figure with most kinds of marks: as many as the table has rows of what it shows."""
    drawn = table("mitigation").query("quantity not in ['gap', 'transfer ratio', 'perception part', 'recall part']")
    figure = plots.mitigation(table("mitigation"), table("mitigation_tests"))
    shown = [dots for axes in figure.axes for dots in axes.containers]
    estimates = pd.concat([pd.Series(dots.lines[0].get_xdata()) for dots in shown]).dropna()
    assert sorted(estimates) == pytest.approx(sorted(drawn["estimate"]))
    bars = [path.vertices[:, 0] for dots in shown for bar in dots.lines[2] for path in bar.get_paths()]
    intervals = sorted(tuple(ends) for ends in bars if not np.isnan(ends).any())
    np.testing.assert_allclose(intervals, sorted(zip(drawn["low"], drawn["high"], strict=True)))
    plt.close(figure)


def test_below_a_figure_stands_of_how_many_replicates_it_is():
    several, one = "0.1 0.2 0.3", "0.1"
    row = pd.DataFrame({"low": [0.0, 0.1], "each": [several, several]})
    words = "n = 3 replicates (small dots). Bars: 95 % intervals over replicates; broad and pale: over people"
    assert footnote(row, bars=True) == words
    assert footnote(row) == "n = 3 replicates"
    assert footnote(row, bands=True) == "n = 3 replicates. Bands: 95 % intervals over replicates"
    mixed = footnote(row.assign(each=[several, one]), bars=True)
    assert mixed.startswith("n = 1 to 3 replicates (small dots)") and "(of one: over its people)" in mixed
    assert footnote(row.assign(each=one), bars=True) == "n = 1 replicate. Bars: 95 % intervals over its people"
    lone = pd.DataFrame({"replicate": [11, 12, 12], "model": ["s", "s", "xs"]})
    assert footnote(lone.drop(columns="model")) == "n = 2 replicates" and footnote(lone) == "n = 1 to 2 replicates"
    assert footnote(pd.DataFrame({"recall": [1.0]})) == footnote(row.assign(each=None), bars=True) == ""


def test_kinds_of_answers_differ_without_colour():
    """As neighbours in a bar: in lightness (of 0 to 1), or by a pattern."""
    plain = [to_rgb(bar["color"]) for bar in ANSWERED.values() if "hatch" not in bar]
    plain = [sum(w * c**2.2 for w, c in zip((0.2126, 0.7152, 0.0722), rgb, strict=True)) ** (1 / 2.2) for rgb in plain]
    assert min(abs(a - b) for a, b in itertools.pairwise(plain)) > 0.15


def test_every_plot_that_a_notebook_asks_for_exists():
    text = "".join(file.read_text("utf-8") for file in paths.NOTEBOOKS.glob("*.ipynb"))
    assert {name for name in re.findall(r"\bplots\.(\w+)\(", text) if not hasattr(plots, name)} == set()
