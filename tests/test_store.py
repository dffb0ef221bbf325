"""A run is there whole or not at all, and a damaged one is computed again."""

import pandas as pd
import pytest

from xmem_utils import store
from xmem_utils.params import Condition

CONDITION = Condition(
    weights="w", data="d", personas=5, source="image", seed=0, train_views=1, epochs=1, rank=1,
    learning_rate=1e-3, batch_size=1, question="Who is this?", code="c",
)  # fmt: skip


class Adapter:
    """Writes what a PEFT model would, in small."""

    def save_pretrained(self, folder):
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(b"weights")


def computed(log):
    def compute(condition):
        log.append(condition.slug)
        return Adapter(), pd.DataFrame({"exact": [True]}), pd.DataFrame({"epoch": [0]})

    return compute


def test_a_condition_is_computed_once(tmp_path):
    log = []
    for _ in range(2):
        run = store.get(CONDITION, computed(log), tmp_path)
    assert len(log) == 1
    assert run.records["exact"].tolist() == [True]
    assert (run.adapter / "adapter_model.safetensors").read_bytes() == b"weights"


@pytest.mark.parametrize("file", ["records.parquet", "curve.parquet", "condition.json", "manifest.json"])
def test_a_flipped_byte_is_noticed_named_and_mended(tmp_path, file):
    log = []
    run = store.get(CONDITION, computed(log), tmp_path)
    content = bytearray((run.folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (run.folder / file).write_bytes(bytes(content))
    with pytest.warns(UserWarning, match=CONDITION.slug):
        store.get(CONDITION, computed(log), tmp_path)
    assert len(log) == 2
    assert store.damage(run.folder) is None


def test_a_failure_while_computing_leaves_nothing_behind(tmp_path):
    def fail(condition):
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        store.get(CONDITION, fail, tmp_path)
    assert store.find(CONDITION, tmp_path) is None
    log = []
    store.get(CONDITION, computed(log), tmp_path)
    assert len(log) == 1


def test_every_field_of_a_condition_is_in_its_identity():
    others = {"source": "text", "left_out": (1,)}
    for field, value in CONDITION.model_dump().items():
        if field not in others:
            others[field] = f"{value}x" if isinstance(value, str) else value + 1
        assert CONDITION.model_copy(update={field: others[field]}).slug != CONDITION.slug, field
