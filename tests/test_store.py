"""An adapter is there whole or not at all, records beside it too, and what is damaged is made again."""

import pandas as pd
import pytest

from xmem_utils import store
from xmem_utils.memorization.experiment import MemorizationCondition

CONDITION = MemorizationCondition(
    model="m", weights="w", data="d", personas=5, source="image", replicate=0, train_views=1, epochs=1, rank=1,
    learning_rate=1e-3, batch_size=1, question="Who is this?", code="c",
)  # fmt: skip


def write_adapter(folder):
    """Writes what a PEFT model would, in small."""
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"weights")


def run(root, log, key="k"):
    """A run whose training and evaluation are noted."""

    def train():
        log.append("trained")
        return write_adapter, pd.DataFrame({"epoch": [0]}), {"steps": 3}

    def evaluate():
        log.append(f"evaluated {key}")
        return pd.DataFrame({"exact": [key == "k"]})

    return store.evaluated(store.trained(CONDITION, train, root), key, evaluate)


def test_a_condition_is_trained_and_evaluated_once(tmp_path):
    log = []
    for _ in range(2):
        found = run(tmp_path, log)
    assert log == ["trained", "evaluated k"]
    assert found.records["exact"].tolist() == [True] and found.facts == {"steps": 3}
    assert (found.adapter / "adapter_model.safetensors").read_bytes() == b"weights"


def test_another_evaluation_asks_the_same_adapter_and_trains_nothing(tmp_path):
    log = []
    run(tmp_path, log)
    assert run(tmp_path, log, "metric").records["exact"].tolist() == [False]
    assert run(tmp_path, log).records["exact"].tolist() == [True], "the first one is still there"
    assert log == ["trained", "evaluated k", "evaluated metric"]


def hurt(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.parametrize("file", ["curve.parquet", "facts.json", "condition.json", "manifest.json"])
def test_a_flipped_byte_is_noticed_named_and_mended(tmp_path, file):
    log = []
    hurt(run(tmp_path, log).folder / file)
    with pytest.warns(UserWarning, match=CONDITION.slug):
        again = run(tmp_path, log)
    assert log == 2 * ["trained", "evaluated k"]
    assert store.damage(again.folder) is None


@pytest.mark.parametrize("file", ["records-k.parquet", "records-k.sha256"])
def test_damaged_records_are_made_again_and_nothing_is_trained(tmp_path, file):
    log = []
    hurt(run(tmp_path, log).folder / file)
    with pytest.warns(UserWarning, match=f"{CONDITION.slug}: records-k.parquet is damaged"):
        run(tmp_path, log)
    assert log == ["trained", "evaluated k", "evaluated k"]


def test_a_list_names_what_is_damaged_or_stale(tmp_path):
    found = run(tmp_path, [])

    def listed(codes):
        return store.listing(tmp_path, frozenset(codes), lambda records: {"exact": records["exact"].mean()}, True)

    assert listed({"c"})["state"].tolist() == ["whole"] and listed({"c"})["exact"].tolist() == [1]
    assert listed({"d"})["state"].tolist() == ["stale"]
    hurt(found.folder / "records-k.parquet")
    assert listed({"c"})["state"].tolist() == ["changed or missing: records-k.parquet"]
    (found.folder / "condition.json").unlink()
    assert "condition.json" in listed({"c"})["state"][0]


def test_a_failure_while_training_leaves_nothing_behind(tmp_path):
    def fail():
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        store.trained(CONDITION, fail, tmp_path)
    assert store.find(CONDITION, tmp_path) is None
    assert not list(tmp_path.glob("*partial*"))
    log = []
    run(tmp_path, log)
    assert log == ["trained", "evaluated k"]


def test_every_field_of_a_condition_is_in_its_identity():
    others = {"source": "text", "left_out": (1,)}
    for field, value in CONDITION.model_dump().items():
        if field not in others:
            others[field] = f"{value}x" if isinstance(value, str) else value + 1
        assert CONDITION.model_copy(update={field: others[field]}).slug != CONDITION.slug, field
