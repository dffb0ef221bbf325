"""A user's own people, accepted when whole; what is refused is in tests/hostile."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from xmem_utils.personas.dataset import names_of, to_views
from xmem_utils.personas.importing import import_folder


def write(folder, people, views, kind):
    """A folder of people by label, with `views` in either split and modality; returns its rows."""
    rows = []
    for persona, name in people.items():
        for split in ("train", "test"):
            for k in range(views):
                file = f"{persona}-{split}-{k}.{kind}"
                pixels = np.random.default_rng(len(rows)).integers(0, 255, (48, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / file)
                rows.append({"persona": persona, "name": name, "split": split, "file_name": file,
                             "description": f"View {k} of {split}: a hat, {persona} among them."})  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return rows


@pytest.fixture
def folder(tmp_path):
    return tmp_path, write(tmp_path, {"a": "Ada Lin", "b": "Bo Kern"}, 2, "png")


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


def test_six_people_with_four_views_come_out_in_the_order_of_their_labels(tmp_path):
    names = ("Greta Holm", "Ada Lin", "Bo Kern", "Zoë Roth", "Ivo Marr", "Una Falk")
    write(tmp_path, dict(zip("cabfed", names, strict=True)), 4, "jpg")
    dataset, _ = import_folder(tmp_path)
    assert names_of(dataset) == ["Ada Lin", "Bo Kern", "Greta Holm", "Una Falk", "Ivo Marr", "Zoë Roth"]
    seen = to_views(dataset, "train", "image")[0].content
    with Image.open(tmp_path / "a-train-0.jpg") as image:
        assert np.array_equal(np.asarray(seen), np.asarray(image))
