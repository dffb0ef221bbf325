"""A user's own people: accepted and unchanged, or refused in one sentence."""

import io
import json
import random

import corpus
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from xmem_utils.personas.attributes import AXIS_NAMES
from xmem_utils.personas.dataset import names_of
from xmem_utils.personas.importing import import_folder
from xmem_utils.plots import contact_sheet


def plain(value):
    """What a case writes short: {times: [text, count]}."""
    return value["times"][0] * value["times"][1] if isinstance(value, dict) else value


def people(names=("Ada Lin", "Bo Kern")):
    return [
        {"persona": persona, "name": plain(name), "split": split, "file_name": f"{persona}-{split}-{k}.png",
         "description": f"Someone in {split} clothes number {k}."}
        for persona, name in zip("ab", names, strict=True) for split in ("train", "test") for k in range(2)
    ]  # fmt: skip


def draw(folder, rows):
    for k, row in enumerate(rows):
        pixels = np.random.default_rng(k).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / row["file_name"])


def written(rows, form="csv", separator=","):
    if form == "jsonl":
        return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    return pd.DataFrame(rows).to_csv(index=False, sep=separator)


def spoiled(folder, case):
    """Write the people of a case; returns their rows."""
    fields = case.given
    rows = people(fields.get("names", ("Ada Lin", "Bo Kern")))
    draw(folder, rows)
    for number, changes in fields.get("rows", {}).items():
        rows[number] |= {column: plain(value) for column, value in changes.items()}
    rows = [{c: v for c, v in (row | fields.get("all", {})).items() if c != fields.get("without")} for row in rows]
    kept = [rows[k] for k in fields.get("only", range(len(rows)))]
    form = fields.get("form", "csv")
    text = plain(fields.get("text", written(kept, form, fields.get("separator", ",")) if kept else ",".join(rows[0])))
    if "replace" in fields:
        assert fields["replace"][0] in text
        text = text.replace(*fields["replace"])
    if text is not None:
        (folder / f"metadata.{form}").write_bytes(text.encode(fields.get("encoding", "utf-8")))
    if "also" in fields:
        (folder / fields["also"]).touch()
    if "link" in fields:
        (folder / "link.png").symlink_to(fields["link"])
    return kept


@corpus.parametrized("people")
def test_people(case, witness, tmp_path):
    folder = tmp_path / "people"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "elsewhere.png")
    rows = spoiled(folder, case)
    result = witness(case, lambda: import_folder(folder / plain(case.given.get("folder", ""))), tmp_path)
    if result is not None:
        dataset, fingerprint = result
        assert names_of(dataset) == list(dict.fromkeys(row["name"] for row in rows))
        for split in ("train", "test"):
            assert dataset[split]["description"] == [r["description"] for r in rows if r["split"] == split]
        assert import_folder(folder)[1] == fingerprint


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    draw(folder, people())
    return folder


def tried(folder, form, content):
    """What is read with these metadata; None where they are refused, in one sentence."""
    for old in folder.glob("metadata.*"):
        old.unlink()
    (folder / f"metadata.{form}").write_bytes(content)
    try:
        return import_folder(folder)[0]
    except (ValueError, OSError) as error:
        assert not isinstance(error, UnicodeError)
        assert "\n" not in str(error) and 20 < len(str(error)) <= corpus.LONGEST


TEXT = st.text(max_size=70) | st.text(st.sampled_from("aАеlo <>|[]_'\"\n,;\u200b\u0301\x00ß李INSTimage"), max_size=30)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.tuples(TEXT, TEXT), TEXT, st.sampled_from(["csv", "jsonl"]))
def test_any_text_comes_out_unchanged_or_is_refused_in_one_sentence(drawn, names, description, form):
    rows = people(names)
    rows[0]["description"] = description
    dataset = tried(drawn, form, written(rows, form).encode("utf-8", "surrogatepass"))
    if dataset is not None:
        assert names_of(dataset) == list(names)
        given_, got = [description, rows[1]["description"]], dataset["train"]["description"][:2]
        assert got == (given_ if description else [given_[1], None])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.binary(max_size=80), st.sampled_from(["csv", "jsonl"]), st.integers(0, 10**6))
def test_any_bytes_in_the_metadata_are_refused_in_one_sentence(drawn, noise, form, place):
    whole = written(people(), form).encode()
    place = random.Random(place).randrange(len(whole))
    tried(drawn, form, whole[:place] + noise + whole[place + len(noise) :])


@pytest.mark.parametrize("name", ["Ada $x$", r"$\frac$", "<script>alert(1)</script>", "a & b"])
def test_a_name_is_text_where_it_is_shown(name):
    row = {"name": name, "portraits": [Image.new("RGB", (8, 8))], **dict.fromkeys(AXIS_NAMES, "x")}
    figure = contact_sheet(pd.DataFrame([row]))
    figure.savefig(io.BytesIO())
    assert any(t.get_text().startswith(name) and not t.get_parse_math() for t in figure.axes[-1].texts)
    assert "<script>" not in pd.DataFrame({"true name": [name]}).to_html()
