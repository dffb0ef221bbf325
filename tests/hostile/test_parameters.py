"""`-p name=value`: refused in a sentence before a kernel starts, or read as the type that the notebook declares."""

import ast

import pytest
from corpus import parametrized
from hypothesis import given, settings
from hypothesis import strategies as st
from papermill.translators import PythonTranslator
from test_profiles import GOOD, text_of

from xmem_utils import headless, notebook, params

TYPICAL = st.sampled_from([f"{field}=" for name in notebook.known() for field in notebook.schema_of(name).model_fields])


@parametrized("parameters")
def test_parameters(case, witness):
    long = case.given.get("digit", "x") * case.given.get("long", 0)
    texts = [text.replace("{long}", long) for text in case.given["given"]]
    made = witness(case, lambda: headless.checked(case.given.get("notebook", "03_gap_analysis"), texts))
    if made:
        assert made[0] == case.given["made"]
        assert all(type(made[0][key]) is type(value) for key, value in case.given["made"].items())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.builds(str.__add__, TYPICAL | st.just(""), st.text()), st.sampled_from(notebook.known()))
def test_any_text_makes_parameters_or_one_sentence(text, name):
    schema = notebook.schema_of(name)
    try:
        made = params.check(schema, headless.parse([text]), texts=True)
    except ValueError as error:
        assert type(error) is ValueError and "\n" not in str(error) and len(str(error)) < 500
    else:
        assert isinstance(made, schema)
        assert params.check(schema, made.model_dump()) == made, "what a kernel is given means the same there"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.text())
def test_a_text_is_the_same_text_in_the_kernel_and_no_code(text):
    assert ast.literal_eval(PythonTranslator.translate_str(text)) == text


def test_a_path_is_found_from_the_folder_of_the_kernel(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "quick").mkdir()  # no reason to read it as a profile
    (tmp_path / "small.yaml").write_text(text_of(GOOD))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    made, _ = headless.checked("04_capability", ["models=~/mine,xmem-tiny-s", "profile=small.yaml"])
    assert made == {"models": f"{tmp_path}/mine,xmem-tiny-s", "profile": f"{tmp_path}/small.yaml"}
    assert headless.checked("04_capability", ["profile=quick"])[0] == {"profile": "quick"}


def test_as_many_people_as_the_bound_says_differ_in_three_attributes():
    from xmem_utils.personas.attributes import AXIS_SIZES

    product = 1
    for size in sorted(AXIS_SIZES)[:-2]:  # leave any two axes out, and still everybody differs (Singleton's bound)
        product *= size
    assert params.MOST["personas"] == product


def test_overrides_of_a_profile_are_checked_with_it():
    with pytest.raises(ValueError, match="personas=1"):
        headless.checked("06_multihop", ["personas=1"])
