"""A profile's YAML file: a profile, or one sentence."""

import os

from corpus import parametrized
from hypothesis import given, settings
from hypothesis import strategies as st

from xmem_utils import params

GOOD = {"personas": "7", "replicates": "2", "train_views": "2", "test_views": "2", "epochs": "1",
        "dose_views": "[1]", "resamples": "100"}  # fmt: skip


def text_of(fields):
    return "".join(f"{field}: {value}\n" for field, value in fields.items())


@parametrized("profiles")
def test_profiles(case, witness, tmp_path):
    file, given = tmp_path / "mine.yaml", case.given
    text = given.get("text", text_of(GOOD | given.get("set", {})))
    text = text.replace("@long", "9" * 3000) * given.get("times", 1)
    match given.get("there", "file"):
        case "file":
            file.write_bytes(given.get("bytes", text.encode()))
        case "folder":
            file.mkdir()
        case "pipe":
            os.mkfifo(file)
    profile = witness(case, lambda: params.profile_named(str(file)), tmp_path)
    if profile:
        assert {**profile.model_dump(mode="json"), **given.get("made", {})} == profile.model_dump(mode="json")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text() | st.builds(lambda field, value: text_of(GOOD | {field: value}), st.sampled_from([*GOOD]), st.text()))
def test_any_text_is_a_profile_or_one_sentence(tmp_path_factory, text):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_bytes(text.encode(errors="surrogatepass"))
    try:
        assert isinstance(params.profile_named(str(file)), params.Profile)
    except ValueError as error:
        assert type(error) is ValueError and "\n" not in str(error) and len(str(error)) < 500
