"""The claims' table: rows of other tables, said in the same words; README shows what the CSV says."""

import numpy as np
import pandas as pd
import pytest

from xmem_utils import paths, plots
from xmem_utils.claims import COLUMNS, EVIDENCE, claims, filled, markdown, provenance, readme, sentence, times
from xmem_utils.memorization import tables
from xmem_utils.stats import INTERVAL, SUPPORTED, UNSAID


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
    pd.DataFrame(columns=["unlearned", "method", "difference", *INTERVAL[1:], "p", "verdict"]).to_csv(
        folder / "unlearning_headline.csv"
    )
    mute = claims(folder).set_index("table").loc["unlearning_headline.csv"]
    assert mute["verdict"] == UNSAID, "it was run, and has nothing to say"
    assert f"| {UNSAID} | [csv](figures/unlearning_headline.csv)" in markdown(claims(folder))
    nothing = claims(tmp_path_factory.mktemp("empty"))
    assert len(nothing) == len(EVIDENCE) and "Nothing can be said yet" in sentence(nothing)


@pytest.fixture
def spent(tmp_path):
    for name, seconds in (("train-m-1-of-2", 60), ("train-m-2-of-2", 120), ("claims", 30)):
        took = {"s": seconds, "cpu_time": 2 * seconds, "max_rss": 512}
        pd.DataFrame([took]).to_csv(tmp_path / f"{name}.tsv", sep="\t", index=False)
    return times(tmp_path)


def test_what_a_run_took_is_the_sum_of_its_jobs(spent, tmp_path, tmp_path_factory):
    own = spent.set_index("rule").loc["train"]
    assert own[["jobs", "minutes", "CPU minutes", "most memory, GB"]].tolist() == [2, 3.0, 6.0, 0.5]
    assert "3 jobs of 4 minutes together, so 2 minutes on two cores" in provenance(spent)
    earlier = spent.assign(rule=["claims", "hops"], minutes=9.0, commit="0123abc")
    table = times(tmp_path, earlier).set_index("rule")
    assert table["minutes"].to_dict() == {"claims": 0.5, "hops": 9.0, "train": 3.0}
    assert f"commits {spent['commit'][0]}, 0123abc: " in provenance(table.reset_index())
    with pytest.raises(ValueError, match="run `make figures` first"):
        times(tmp_path_factory.mktemp("empty"))


def test_a_document_shows_the_table_between_its_marks(folder, spent):
    table, gaps = claims(folder), pd.read_csv(folder / "gaps.csv")
    dose = pd.read_csv(paths.REPO / "figures" / "dose_response.csv", dtype={"each": str})
    marked = (paths.REPO / "README.md").read_text("utf-8")
    once = readme(marked, table, gaps, dose, spent)
    assert markdown(table) in once and readme(once, table, gaps, dose, spent) == once
    assert once.count(f"**{SUPPORTED}**") == (table["verdict"] == SUPPORTED).sum()
    assert "say at least 100% of them. Asked in the other one they say 50% (learned from pictures)" in once
    assert "| C1, C2 | `make figures ONLY=gap_analysis` | 6 |" in once
    with pytest.raises(ValueError, match="claims has no place in it"):
        filled("nothing", "claims", "")


def test_readme_shows_the_committed_claims():
    figures, text = paths.REPO / "figures", (paths.REPO / "README.md").read_text("utf-8")
    table = pd.read_csv(figures / "claims.csv", dtype={"each": str})
    gaps, dose, spent = (pd.read_csv(figures / f"{name}.csv") for name in ("gaps", "dose_response", "run"))
    assert readme(text, table, gaps, dose, spent) == text, "run `python -m xmem_utils readme`"
