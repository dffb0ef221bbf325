"""A user's own people: accepted when whole, refused in one clear sentence otherwise."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from xmem_utils.personas.dataset import names_of, to_views
from xmem_utils.personas.importing import import_folder


@pytest.fixture
def folder(tmp_path):
    rows = []
    for persona, name in (("a", "Ada Lin"), ("b", "Bo Kern")):
        for split in ("train", "test"):
            for k in range(2):
                file = f"{persona}-{split}-{k}.png"
                pixels = np.random.default_rng(len(rows)).integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / file)
                rows.append({"persona": persona, "name": name, "split": split, "file_name": file,
                             "description": f"Someone in {split} clothes number {k}."})  # fmt: skip
    write(tmp_path, rows)
    return tmp_path, rows


def write(folder, rows):
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)


def test_a_whole_folder_is_read(folder):
    dataset, fingerprint = import_folder(folder[0])
    assert names_of(dataset) == ["Ada Lin", "Bo Kern"]
    assert len(to_views(dataset, "train", "image", per_persona=1)) == 2
    assert len(to_views(dataset, "test", "text")) == 4
    assert import_folder(folder[0])[1] == fingerprint


def test_jsonl_with_one_modality_a_row_is_read(folder):
    path, rows = folder
    (path / "metadata.csv").unlink()
    split_rows = [{k: v for k, v in row.items() if k != drop} for row in rows for drop in ("file_name", "description")]
    (path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in split_rows))
    dataset, _ = import_folder(path)
    assert len(to_views(dataset, "test", "text")) == len(to_views(dataset, "test", "image")) == 4


def spoil_missing_image(path, rows):
    (path / rows[0]["file_name"]).unlink()


def spoil_unreadable_image(path, rows):
    (path / rows[0]["file_name"]).write_bytes(b"not a picture")


def spoil_truncated_image(path, rows):
    file = path / rows[0]["file_name"]
    file.write_bytes(file.read_bytes()[:200])


def spoil_shared_name(path, rows):
    write(path, [{**row, "name": "Ada Lin"} for row in rows])


def spoil_two_names(path, rows):
    write(path, [{**rows[0], "name": "Eve"}, *rows[1:]])


def spoil_name_in_description(path, rows):
    write(path, [{**rows[0], "description": "This is ada lin, smiling."}, *rows[1:]])


def spoil_no_pictures(path, rows):
    write(path, [{**row, "file_name": "" if row["persona"] == "b" else row["file_name"]} for row in rows])


def spoil_no_test_views(path, rows):
    write(path, [{**row, "split": "train"} for row in rows])


def spoil_no_test_view_of_one(path, rows):
    write(path, [row for row in rows if row["persona"] == "a" or row["split"] == "train"])


def spoil_split(path, rows):
    write(path, [{**rows[0], "split": "tset"}, *rows[1:]])


def spoil_column(path, rows):
    write(path, [{k: v for k, v in row.items() if k != "name"} for row in rows])


def spoil_people(path, rows):
    write(path, [row for row in rows if row["persona"] == "a"])


def spoil_place(path, rows):
    (path.parent / "elsewhere.png").write_bytes((path / rows[0]["file_name"]).read_bytes())
    write(path, [{**rows[0], "file_name": "../elsewhere.png"}, *rows[1:]])


def spoil_metadata(path, rows):
    (path / "metadata.csv").unlink()


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (spoil_missing_image, "the image 'a-train-0.png' of persona 'a' is missing"),
        (spoil_unreadable_image, "the image 'a-train-0.png' of persona 'a' cannot be read"),
        (spoil_truncated_image, "the image 'a-train-0.png' of persona 'a' cannot be read"),
        (spoil_shared_name, "personas 'a' and 'b' share the name 'Ada Lin'"),
        (spoil_two_names, "persona 'a' has several names: Ada Lin, Eve"),
        (spoil_name_in_description, "the name 'Ada Lin' is written in a description"),
        (spoil_no_pictures, "persona 'b' has no train view in modality 'image'"),
        (spoil_no_test_views, "zero test views"),
        (spoil_no_test_view_of_one, "persona 'b' has no test view"),
        (spoil_split, "unknown split 'tset'"),
        (spoil_column, "lacks the column name"),
        (spoil_people, "holds 1 persona; recall among names needs at least two"),
        (spoil_place, "the image '../elsewhere.png' of persona 'a' lies outside"),
        (spoil_metadata, "neither metadata.csv nor metadata.jsonl"),
    ],
)
def test_a_spoiled_folder_is_refused_by_name(folder, spoil, sentence):
    spoil(*folder)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        import_folder(folder[0])
    assert sentence in str(error.value)
