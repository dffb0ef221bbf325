"""What code a stored result depends on: found by following it, no more and no less."""

import ast

import pytest
import torch

from xmem_utils import fingerprint, score, train
from xmem_utils.memorization import evaluation
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.mitigation import data
from xmem_utils.mitigation.experiment import Mitigation
from xmem_utils.mitigation.methods import METHODS as MITIGATIONS
from xmem_utils.unlearning import losses
from xmem_utils.unlearning.experiment import Unlearning
from xmem_utils.unlearning.methods import METHODS, Method


def keys():
    """All keys of the moment, by what they are of."""
    fingerprint.code_of.cache_clear()
    out = {f"{e.folder} {kind}": getattr(e, kind)() for e in (Memorization, Unlearning, Mitigation)
           for kind in ("code", "evaluation")}  # fmt: skip
    out |= {f"method {m.name}": Unlearning.code(m) for m in METHODS.values()}
    return out | {f"mitigation {m.name}": Mitigation.code(m) for m in MITIGATIONS.values()}


@pytest.fixture
def changed(monkeypatch):
    """Puts something else in the place of a function, and says which keys change."""
    before = keys()

    def change(module, name, value=lambda *given: None):
        monkeypatch.setattr(module, name, value)
        found = {key for key, value in keys().items() if before.get(key) != value}
        monkeypatch.undo()
        return found

    yield change
    fingerprint.code_of.cache_clear()


def test_what_code_means_is_what_it_does():
    before = 'def f(x):\n    """Doc."""\n    return x + 1  # comment\n'

    def meaning(source):
        return ast.unparse(fingerprint.bare(source))

    assert meaning(before) == meaning("def f(x: int) -> int:\n\n    return (x +\n 1)\n")
    assert meaning(before) != meaning(before.replace("1", "2"))


def test_a_key_covers_what_is_imported_by_name_into_several_modules():
    for experiment in (Memorization, Unlearning, Mitigation):
        covered = {part.partition(":")[0] for part in fingerprint._followed(experiment.evaluate, experiment)}
        assert {"xmem_utils.vlm.precision.rounding", "xmem_utils.score._batches"} <= covered


def test_a_changed_metric_changes_what_evaluates_and_trains_nothing(changed):
    found = changed(evaluation, "previous_persona")
    assert "memorization evaluation" in found and not any(key.endswith("code") for key in found)
    assert not any(key.startswith(("method", "mitigation ")) and key != "mitigation evaluation" for key in found)
    deeper = changed(score, "_batches")
    assert {"memorization evaluation", "unlearning evaluation", "mitigation evaluation"} <= deeper
    assert not {"memorization code", "unlearning code", "mitigation code"} & deeper
    labelled = {f"mitigation {name}" for name in MITIGATIONS if name.startswith("self-") or name == "own words"}
    assert labelled == {key for key in deeper if not key.endswith("evaluation")}, "these train on what was scored"


def test_a_change_of_what_trains_changes_every_training(changed):
    found = changed(train, "nll")
    assert {"memorization code", "unlearning code", "mitigation code"} <= found
    assert "memorization evaluation" not in found, "evaluating takes no loss"
    assert not changed(torch, "manual_seed"), "libraries count by their version"


def test_a_new_method_changes_nothing_but_its_own_runs(changed):
    more = fingerprint.Table({**METHODS, "new": Method("new", losses=(losses.gradient_ascent,))})
    assert changed(Unlearning, "methods", more) == set()
    assert Unlearning.code(more["new"]) != Unlearning.code(METHODS["GA"])


def test_a_changed_loss_changes_the_runs_of_the_methods_that_take_it(changed):
    assert changed(losses, "_kl") == {"method KL", "method SCRUB"}
    # a replaced loss is no longer the one in the row, so its helper is changed
    assert changed(losses, "_log_ratio") == {"method NPO", "method DPO"}
    found = changed(data, "_captions")
    assert found == {f"mitigation {name}" for name in MITIGATIONS if name.startswith("captions") or name == "replay"}


def test_wording_and_search_grids_change_nothing(changed):
    row = METHODS["NPO"]
    other = Method("NPO", "otherwise said", {"beta": (9.0,)}, row.losses, row.reference, points=(1,))
    assert Unlearning.code(other) == Unlearning.code(row)


def test_what_is_known_by_content_is_not_followed(changed):
    from xmem_utils.memorization import experiment

    found = changed(experiment, "persona_spec")
    assert "memorization code" in found
    seen = fingerprint._followed(Memorization.train, Memorization)
    assert not any(name.startswith(("xmem_utils.personas.portraits", "xmem_utils.vlm.folder")) for name in seen)
    assert any(name.startswith("xmem_utils.vlm.batches.encode:") for name in seen)
