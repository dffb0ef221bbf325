"""Parameters are refused by name before anything starts."""

from typing import get_args

import pytest

from xmem_utils import params
from xmem_utils.notebook import known, schema_of
from xmem_utils.params import check, freeze

GAP = schema_of("03_gap_analysis")
GOOD = {**GAP().model_dump(), "model": "m"}


def test_a_parameters_cell_becomes_one_frozen_object():
    p = freeze(GAP, {**GOOD, "_hidden": 1, "In": [], "params": params, "start": print})
    assert p.model_dump() == GOOD
    with pytest.raises(ValueError, match="frozen"):
        p.rank = 8


def test_an_unknown_name_is_refused_with_the_one_that_was_meant():
    with pytest.raises(ValueError, match=r"unknown parameter 'replicate'; did you mean 'replicates'\?"):
        freeze(GAP, {**GOOD, "replicate": 3})


@pytest.mark.parametrize(("name", "value"), [("replicates", "3"), ("rank", 1.5), ("rank", True), ("people", 3)])
def test_a_cell_with_a_wrong_type_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        freeze(GAP, {**GOOD, name: value})


@pytest.mark.parametrize("notebook", known())
def test_a_cell_declares_names_and_defaults_and_every_rule_has_the_type_it_declares(notebook):
    schema = schema_of(notebook)
    for name, field in schema.model_fields.items():
        allowed = {field.annotation, *get_args(field.annotation)}
        assert {field.default, type(field.default)} & allowed, name
    assert check(schema, {}) == schema()


def test_a_rule_holds_wherever_its_name_is_declared():
    for notebook, text in (
        ("02_training", "source=audio"),
        ("05_unlearning", "forget_share=1"),
        ("00_base_model", "size=l"),
    ):
        name, value = text.split("=")
        with pytest.raises(ValueError, match=f"{name}='{value}' should be"):
            check(schema_of(notebook), {name: value}, texts=True)


def test_overrides_replace_the_profile():
    p = freeze(GAP, {**GOOD, "replicates": 2, "personas": 30})
    profile = params.scaled(params.profile_named("quick"), p)
    assert profile.replicates == 2
    assert profile.personas == 30
    assert profile.train_views == params.PROFILES["quick"].train_views
