"""What all settings of a search do, and how much forgetting reaches the other modality, on tables made by hand."""

import pandas as pd
import pytest

from xmem_utils.params import MODALITIES
from xmem_utils.unlearning import frontier
from xmem_utils.unlearning.names import BEFORE, RETAIN_ONLY

# recall and bits, own and other, and recall of the retained
REFERENCES = {(BEFORE, "{}", 0): (1.0, 1.0, 6.0, 6.0, 1.0), (RETAIN_ONLY, "{}", 0): (0.0, 0.0, 1.0, 1.0, 1.0)}
TRIED = {("GA", "a", 5): (0.05, 0.4, 1.0, 3.0, 0.98), ("GA", "a", 10): (0.0, 0.1, 0.5, 1.5, 0.97),
         ("GA", "b", 5): (0.0, 0.0, 0.0, 0.0, 0.5), ("GA", "c", 5): (0.5, 1.0, 3.0, 6.0, 1.0)}  # fmt: skip


@pytest.fixture
def search():
    rows = []
    for (method, settings, steps), (own, across, own_bits, other_bits, kept) in (REFERENCES | TRIED).items():
        for unlearned in MODALITIES:
            row = {"method": method, "settings": settings, "steps": steps, "unlearned": unlearned}
            for m in MODALITIES:
                row |= {f"forget asked in {m}": own if m == unlearned else across, f"retain asked in {m}": kept}
                row[f"exposure asked in {m}"] = own_bits if m == unlearned else other_bits
            rows += [row | {"replicate": replicate} for replicate in (900, 901)]
    return pd.DataFrame(rows)


@pytest.fixture
def points(search):
    return frontier.frontier(search)


def test_a_setting_is_admissible_where_it_keeps_the_retained_and_forgets_what_it_aimed_at(points):
    table = points.set_index(["settings", "steps", "unlearned"])
    assert len(table) == 3 * len(TRIED), "image, text, and both together"
    kept = table["admissible"].groupby(level=[0, 1]).all()
    assert kept.to_dict() == {("a", 5): True, ("a", 10): True, ("b", 5): False, ("c", 5): False}
    assert table.loc[("a", 5, "image"), "retain change"] == pytest.approx(-0.02)


def test_forgetting_transfer_is_the_share_that_reaches_the_other_modality(points):
    table = points.set_index(["settings", "steps", "unlearned"])
    assert table.loc[("a", 5, "text"), "transfer, said"] == pytest.approx(0.6 / 0.95)
    assert table.loc[("a", 10, "text"), "transfer, exposure"] == pytest.approx(4.5 / 5), (
        "no bits below who never learned"
    )
    found = frontier.ranges(points).set_index(["unlearned", "measure"])
    assert found.loc[("image", "said"), "admissible"] == 2 and found.loc[("either", "said"), "admissible"] == 2
    assert found.loc[("either", "said"), ["least", "most"]].tolist() == pytest.approx([0.6 / 0.95, 0.9])
    assert found.loc[("either", "said"), ["below one", "near one"]].tolist() == [1.0, 0.5]


def test_what_diverged_for_some_is_no_point(search):
    lone = search[(search["settings"] == "a") & (search["replicate"] == 900)].assign(settings="d")
    assert "d" not in set(frontier.frontier(pd.concat([search, lone]))["settings"])
    with pytest.raises(ValueError, match="has no exposure asked in image, exposure asked in text: run"):
        frontier.frontier(search.drop(columns=["exposure asked in image", "exposure asked in text"]))
