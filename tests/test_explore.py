"""Exploring: a stored model names whom it learned; clicks change what is shown; what cannot be asked is said."""

import shutil
from dataclasses import replace

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from xmem_utils import paths
from xmem_utils.explore import ask, asking, browsing, comparing, curves, people_of, stored
from xmem_utils.explore.models import opened
from xmem_utils.explore.widgets import PAGE, table_of
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.params import Profile
from xmem_utils.personas.dataset import names_of, to_views
from xmem_utils.unlearning.experiment import Unlearning

PROFILE = Profile(personas=6, replicates=1, train_views=4, test_views=2, epochs=8, dose_views=(4,), resamples=200)


@pytest.fixture(scope="module")
def study(vlm, own_store):
    return Memorization(vlm, PROFILE, 8, 2e-3)


@pytest.fixture(scope="module")
def runs(study):
    """Two trainings, the latest first: people unlearned from text, and learned from pictures."""
    study.run(study.condition("image", 11))
    unlearning = Unlearning(study)
    settings = {"learning_rate": 1e-3, "retain_weight": 1.0, "steps": 30.0}
    unlearning.run(unlearning.condition("GradDiff", settings, "text", 11, forget=(0, 1)))
    opened.cache_clear()
    return stored()


def of(runs, kind, source):
    return next(run for run in runs if run.folder.parent.name == kind and run.start.source == source)


def test_the_latest_training_comes_first(runs, study):
    assert [run.folder.parent.name for run in runs] == ["unlearning", "memorization", "memorization"]
    assert names_of(people_of(runs[0])) == names_of(study.dataset(11)[0])


def test_a_model_names_whom_it_learned(runs, study, tmp_path):
    run, (people, _) = of(runs, "memorization", "image"), study.dataset(11)
    answers = [ask(run, view.content) for view in to_views(people, "test", "image")]
    right = [a.says == v.name for a, v in zip(answers, to_views(people, "test", "image"), strict=True)]
    records = run.records.query("task == 'view' and query == 'image'").sort_values(["persona", "view"])
    assert right == list(records["exact"] == 1) and np.mean(right) > 0.5
    assert (answers[0].likeliest["probability"].diff().dropna() <= 0).all() and len(answers[0].likeliest) == 5
    view = to_views(people, "test", "image")[0]
    view.content.save(tmp_path / "face.png")
    pd.testing.assert_frame_equal(ask(run, tmp_path / "face.png").likeliest, answers[0].likeliest)
    assert view.name in answers[0]._repr_html_()


def test_who_was_unlearned_is_asked_on_top_of_what_was_learned(runs, study):
    people, _ = study.dataset(11)
    run = of(runs, "unlearning", "image+text")
    texts = [view for view in to_views(people, "test", "text") if view.index == 0]
    said = [ask(run, view.content).says == view.name for view in texts]
    assert np.mean(said[2:]) > np.mean(said[:2])


def test_what_cannot_be_asked_is_said(runs, tmp_path, monkeypatch):
    run = runs[-1]
    for nothing in ("", "  ", None, 3):
        with pytest.raises(ValueError, match="nothing is shown"):
            ask(run, nothing)
    with pytest.raises(ValueError, match="there is no picture"):
        ask(run, tmp_path / "gone.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"the picture 'text\.png' cannot be read"):
        ask(run, tmp_path / "text.png")
    other = replace(run, condition=run.condition.model_copy(update={"weights": "0" * 16}))
    with pytest.raises(ValueError, match="was trained on other weights"):
        ask(other, "A man.")
    copy = replace(run, folder=tmp_path / run.folder.name)
    shutil.copytree(run.folder, copy.folder)
    (copy.folder / "facts.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is damaged \(changed or missing: facts.json\)"):
        ask(copy, "A man.")
    monkeypatch.setattr(paths, "PERSONAS", tmp_path)
    people_of.cache_clear()
    with pytest.raises(ValueError, match=r"are not in .*: give the folder"):
        people_of(run)


def test_what_is_no_training_is_passed_over(runs):
    folder = runs[0].folder.parent / "other"
    folder.mkdir()
    (folder / "condition.json").write_text('{"code": "1"}')
    assert [run.folder for run in stored()] == [run.folder for run in runs]
    with pytest.raises(ValueError, match="run notebook 02 first"):
        asking([])


def field(box, kind, description=""):
    """The widget of a kind, and with a description, inside a box."""
    inside = [box]
    for widget in inside:
        inside += getattr(widget, "children", ())
    return next(w for w in inside if isinstance(w, kind) and w.description == description)


def test_a_click_changes_the_answer(runs, study):
    box = asking(runs)
    answer = box.children[-1]
    field(box, ipywidgets.Dropdown, "model").value = of(runs, "memorization", "image")
    field(box, ipywidgets.Button, "Ask").click()
    first = answer.value
    assert names_of(study.dataset(11)[0])[0] in first
    field(box, ipywidgets.Dropdown, "person").value = 3
    assert answer.value == first, "nothing is asked before the click"
    field(box, ipywidgets.Button, "Ask").click()
    assert answer.value != first
    assert field(box, ipywidgets.Dropdown, "person").layout.display != "none"
    field(box, ipywidgets.ToggleButtons, "show").value = "my words"
    assert field(box, ipywidgets.Dropdown, "person").layout.display == "none"
    field(box, ipywidgets.Button, "Ask").click()
    assert "nothing is shown" in answer.value
    field(box, ipywidgets.ToggleButtons, "show").value = "my picture"
    field(box, ipywidgets.Button, "Ask").click()
    assert "no picture was chosen yet" in answer.value


def test_people_are_found_by_attribute_and_name(study):
    people, _ = study.dataset(11)
    table, box = table_of(people), browsing(people)
    count, grid = box.children[-2:]
    assert count.value == "6 of 6 people" and grid.value.count("<img") == 6 <= PAGE
    hair = table["hair colour"][0]
    field(box, ipywidgets.Dropdown, "hair colour").value = hair
    assert grid.value.count("<img") == (table["hair colour"] == hair).sum()
    field(box, ipywidgets.Text, "name").value = "nobody of this name"
    assert count.value == "0 of 6 people" and "<img" not in grid.value


def test_runs_stand_side_by_side(runs):
    box = comparing(runs)
    chosen, table, drawn = box.children
    assert runs[0].label in table.value and "recall asked in text" in table.value and "<img" in drawn.value
    chosen.value = (runs[-1],)
    assert runs[0].label not in table.value
    figure = curves(runs)
    assert len(figure.axes) == len(runs)
    plt.close(figure)
