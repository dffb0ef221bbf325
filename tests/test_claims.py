"""The claims' table: rows of other tables, said in the same words; README shows what the CSV says."""

import numpy as np
import pandas as pd
import pytest

from xmem_utils import paths, plots
from xmem_utils.claims import COLUMNS, EVIDENCE, claims, markdown, sentence, with_claims
from xmem_utils.memorization import tables
from xmem_utils.stats import SUPPORTED


def records(replicates):
    """Twenty people by source: all are said in the source, half in the target; there, four fifths rank first."""
    rows = [
        {"source": source, "replicate": replicate, "persona": person, "query": asked, "task": "view", "names": 20,
         "exact": asked == source or person % 2 == replicate % 2, "rank": 1 if asked == source or person % 5 else 3}
        for replicate in range(replicates) for source in ("image", "text") for asked in ("image", "text")
        for person in range(20)
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(params=[1, 3], ids=["one replicate", "three"])
def folder(request, tmp_path):
    trained = records(request.param)
    base = trained.drop(columns="source").drop_duplicates().assign(exact=False, rank=20)
    for name, table in (("gaps", tables.gaps), ("transfers", tables.transfers)):
        table(trained, base, 200).to_csv(tmp_path / f"{name}.csv", index=False, float_format="%.4f")
    return tmp_path


def test_every_row_is_a_row_of_its_table(folder):
    table = claims(folder)
    assert list(table.columns) == COLUMNS
    gaps = pd.read_csv(folder / "gaps.csv", dtype={"each": str})
    own = table[table["table"] == "gaps.csv"]
    np.testing.assert_allclose(own["estimate"], gaps["gap"])
    assert own["each"].tolist() == gaps["each"].tolist() and own["verdict"].tolist() == gaps["verdict"].tolist()
    assert own["replicates"].tolist() == gaps["each"].str.split().str.len().tolist()
    assert ("too little to say much" in sentence(table)) == (own["replicates"].max() == 1)
    plots.claims(table).canvas.draw()


def test_what_has_no_table_yet_is_not_run(folder, tmp_path_factory):
    missing = claims(folder).set_index("table").loc[["capability_changes.csv", "mitigation_tests.csv"], "verdict"]
    assert (missing == "not run").all()
    nothing = claims(tmp_path_factory.mktemp("empty"))
    assert len(nothing) == len(EVIDENCE) and "No table is there yet" in sentence(nothing)


def test_a_document_shows_the_table_between_its_marks(folder):
    table = claims(folder)
    marked = (paths.REPO / "README.md").read_text("utf-8")
    once = with_claims(marked, table)
    assert markdown(table) in once and with_claims(once, table) == once
    assert once.count(f"**{SUPPORTED}**") == (table["verdict"] == SUPPORTED).sum()
    with pytest.raises(ValueError, match="no place in it"):
        with_claims("nothing", table)


def test_readme_shows_the_committed_claims():
    file = paths.REPO / "figures" / "claims.csv"
    table = pd.read_csv(file, dtype={"each": str})
    text = (paths.REPO / "README.md").read_text("utf-8")
    assert with_claims(text, table) == text, "run `python -m xmem_utils readme`"
