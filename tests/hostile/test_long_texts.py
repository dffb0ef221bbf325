"""Texts that are longer than a model's context, or that its tokenizer takes for something else."""

import time

import pytest
from corpus import parametrized
from hypothesis import given, settings
from hypothesis import strategies as st

from xmem_utils import paths
from xmem_utils.personas.views import View
from xmem_utils.vlm.batches import answer_tokens, encode
from xmem_utils.vlm.load import load_vlm
from xmem_utils.vlm.readable import check_readable, control_tokens


@pytest.fixture(scope="module")
def vlm():
    return load_vlm(str(paths.BASE_MODELS / "xmem-tiny-s-11"), "cpu")


def repeated(value):
    return value if isinstance(value, str) else value[0] * value[1]


@parametrized("long_texts")
def test_texts(case, witness, vlm):
    given_ = case.given
    names = [repeated(given_[key]) for key in ("name", "other") if key in given_] or ["Ada"]
    text = given_.get("text", "A man.") * given_.get("times", 1)
    views = [View(i, name, "text", "train", 0, text) for i, name in enumerate(names)]
    began = time.perf_counter()

    def read():
        check_readable(vlm, names, [text])
        return encode(vlm, views)

    made = witness(case, read, paths.BASE_MODELS)
    assert time.perf_counter() - began < 10
    for name, example in zip(names, made or [], strict=False):
        assert vlm.processor.tokenizer.decode(example.answer[:-1]) == name


@settings(max_examples=50, deadline=None, derandomize=True)
@given(name=st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=30))
def test_a_name_is_written_back_or_refused(vlm, name):
    try:
        check_readable(vlm, [name], [])
    except ValueError:
        return
    (tokens,) = answer_tokens(vlm, [name])
    assert vlm.processor.tokenizer.decode(tokens[:-1]) == name


def test_all_special_tokens_are_refused_as_text(vlm):
    assert {*vlm.processor.tokenizer.all_special_tokens} <= {*control_tokens(vlm.processor)}
    for token in control_tokens(vlm.processor):
        with pytest.raises(ValueError, match="control token"):
            check_readable(vlm, ["Ada"], [f"a{token}b"])
