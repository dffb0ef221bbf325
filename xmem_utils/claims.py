"""The claims of the study in one table: each row of it is a row of a notebook's table, said in the same words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from xmem_utils.stats import INTERVAL, UNSAID, values

FROM = {"image": "from pictures", "text": "from descriptions"}
COLUMNS = ["claim", "test", "measure", *INTERVAL, "replicates", "p holm", "people p", "verdict", "notebook", "table"]


@dataclass(frozen=True)
class Evidence:
    """Rows of a notebook's table that speak for or against a claim."""

    claim: str
    what: Callable[[pd.Series], str]  # the test in words, from a row
    notebook: str
    table: str  # the CSV beside its figures
    effect: str  # column of the difference
    rows: str = ""  # a query; all rows without
    ends: str = ""  # stands before the columns low, high, each
    measure: str = "said"  # where the table has no such column
    p: str = "p holm"
    verdict: str = "verdict"
    order: tuple[str, ...] = field(default=("source",))


C1 = "C1 names cross over to the other modality"
C2 = "C2 fewer of them than in the one they were learned from: a gap"
C3 = "C3 the gap changes with capability"
C4 = "C4 what is unlearned in one modality stays in the other"
C5 = "C5 two hops: fewer from the other modality"
C6 = "C6 ways to close the gap"

EVIDENCE = (
    Evidence(C1, lambda r: f"{FROM[r['source']]}: target recall after less before", "03_gap_analysis", "transfers",
             "difference"),
    Evidence(C2, lambda r: f"{FROM[r['source']]}: source less target recall", "03_gap_analysis", "gaps", "gap"),
    Evidence(C3, lambda r: f"{FROM[r['source']]}: gap of {r['to']} less that of {r['from']}", "04_capability",
             "capability_changes", "change of gap"),
    Evidence(C4, lambda r: f"{r['method']}, forgotten: other modality less the unlearned one", "05_unlearning",
             "unlearning_headline", "difference", "unlearned == 'either' and method.str.startswith('pooled')", p="p"),
    Evidence(C5, lambda r: f"{FROM[r['source']]}, {r['task']}: source less target", "06_multihop", "multihop_claim",
             "difference", "task in ['direct', 'step by step']"),
    Evidence(C6, lambda r: f"{FROM[r['source']]}, {r['method']}: target recall less plain training's", "07_mitigation",
             "mitigation_tests", "change of target recall",
             "method in ['captions', 'self-labelled', 'describe, then recall']", ends="change of target recall "),
)  # fmt: skip


def claims(folder: Path) -> pd.DataFrame:
    """All claims, from the tables in a folder: effect with both intervals, replicates, adjusted p, verdict.

    What has no table there yet is a row whose verdict is "not run".
    """
    parts = []
    for evidence in EVIDENCE:
        file = folder / f"{evidence.table}.csv"
        rows = pd.read_csv(file, dtype={"each": str, f"{evidence.ends}each": str}) if file.is_file() else pd.DataFrame()
        rows = rows.query(evidence.rows) if evidence.rows and len(rows) else rows
        made = [_row(evidence, row) for _, row in rows.iterrows()]
        parts += made or [_named(evidence) | {"test": "", "verdict": "not run"}]
    return pd.DataFrame(parts).reindex(columns=COLUMNS)


def _named(evidence: Evidence) -> dict[str, object]:
    return {"claim": evidence.claim, "measure": evidence.measure, "notebook": evidence.notebook,
            "table": f"{evidence.table}.csv"}  # fmt: skip


def _row(evidence: Evidence, row: pd.Series) -> dict[str, object]:
    ends = {end: row[f"{evidence.ends}{end}"] for end in INTERVAL[1:]}
    own = {"test": evidence.what(row), "measure": row.get("measure", evidence.measure)}
    p = row[evidence.p]
    numbers = {"estimate": row[evidence.effect], **ends, "p holm": p, "people p": row.get("people p")}
    found = row[evidence.verdict] if pd.notna(row[evidence.verdict]) else UNSAID
    return _named(evidence) | own | numbers | {"replicates": len(values(ends["each"])), "verdict": found}


def sentence(table: pd.DataFrame) -> str:
    """How much can be said, in words."""
    counts = [int(n) for n in table["replicates"].dropna()]
    if not counts:
        return "No table is there yet: run the notebooks 03 to 07 first."
    if max(counts) == 1:
        return (
            "**One replicate: too little to say much.** Intervals and tests are over its people alone, and do not see "
            "the luck of a pretraining. `make figures` runs the standard profile."
        )
    return f"Up to {max(counts)} replicates: intervals and tests are over them; beside each, over people within them."


WORDS = {"supported": "**supported**", "reversed": "**reversed**", "equivalent": "*equivalent*"}
MARKS = "<!-- claims, by `python -m xmem_utils readme` -->", "<!-- end of claims -->"


def markdown(table: pd.DataFrame) -> str:
    """The table as README shows it, a row a test."""
    lines = ["| claim and test | measure | effect | over replicates | over people | p (Holm) | verdict | see |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for claim, rows in table.groupby("claim", sort=False):
        lines.append(f"| **{claim}** | | | | | | | [{rows['notebook'].iloc[0][:2]}]({_path(rows)}) |")
        for _, row in rows[rows["estimate"].notna()].iterrows():
            outer, inner = (f"[{row[low]:.2f}, {row[high]:.2f}]" for low, high in (INTERVAL[1:3], INTERVAL[3:5]))
            p = "" if pd.isna(row["p holm"]) else "< 0.001" if row["p holm"] < 0.001 else f"{row['p holm']:.3f}"
            lines.append(
                f"| {row['test']} | {row['measure']} | {row['estimate']:+.2f} | {outer}, {row['replicates']:.0f} "
                f"| {inner} | {p} | {WORDS.get(row['verdict'], row['verdict'])} | [csv](figures/{row['table']}) |"
            )
    return "\n".join(lines)


def _path(rows: pd.DataFrame) -> str:
    return f"notebooks/{rows['notebook'].iloc[0]}.ipynb"


def with_claims(text: str, table: pd.DataFrame) -> str:
    """A document whose part between `MARKS` is the table. Raises ValueError where it has no such part."""
    start, end = MARKS
    before, found, rest = text.partition(start)
    _, also, after = rest.partition(end)
    if not (found and also):
        raise ValueError(f"the claims have no place in it: put {start!r} and {end!r} there")
    return f"{before}{start}\n{markdown(table)}\n{end}{after}"
