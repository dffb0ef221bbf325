"""The claims of the study in one table: each row of it is a row of a notebook's table, said in the same words."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from xmem_utils.params import VIEWS
from xmem_utils.paths import REPO
from xmem_utils.stats import EQUIVALENT, INTERVAL, REVERSED, SUPPORTED, UNSAID, values

BITS = "exposure, bits"
FROM = {modality: f"from {views}" for modality, views in VIEWS.items()}
COLUMNS = ["claim", "test", "measure", *INTERVAL, "replicates", "p holm", "people p", "verdict", "notebook", "table"]


@dataclass(frozen=True)
class Evidence:
    """Rows of a notebook's table that speak for or against a claim."""

    claim: str
    what: Callable[[pd.Series], str]  # the test in words, from a row
    notebook: str
    table: str  # the CSV beside its figures
    effect: str  # column of the difference
    rows: Callable[[pd.DataFrame], pd.Series] = lambda table: table.notna().any(axis=1)  # which are taken
    ends: str = ""  # stands before the columns low, high, each
    p: str = "p holm"


def ends_of_the_ladder(changes: pd.DataFrame) -> pd.Series:
    """The largest model against the smallest; what lies between stands in the notebook's own table."""
    return (changes["from"] == changes["from"].iloc[0]) & (changes["to"] == changes["to"].iloc[-1])


C1 = "C1 names cross over to the other modality"
C2 = "C2 fewer of them than in the one they were learned from: a gap"
C3 = "C3 the gap is smaller in a larger model (our question; the abstract says that it remains)"
C4 = "C4 less is forgotten in the modality that was not unlearned"
C5 = "C5 two hops: fewer from the other modality"
C6 = "C6 ways to close the gap"


def _gap(row: pd.Series) -> str:
    own, across = row["source recall"], row["target recall"]
    return f"{FROM[row['source']]}: source minus target recall ({own:.2f} − {across:.2f})"


def _forgetting(row: pd.Series) -> str:
    left = f"left in the other modality minus in the unlearned one ({row['other']:.2f} − {row['own']:.2f})"
    return f"{row['method']}, one test: {left}"


def _hops(row: pd.Series) -> str:
    return f"{FROM[row['source']]}, {row['task']}: source minus target (hop 1 alone predicts {row['expected']:.2f})"


def _way(row: pd.Series) -> str:
    """No model here draws what a description says; our portrait generator stands in."""
    drawn = row["method"] == "describe, then recall" and row["source"] == "image"
    way = "read, drawn by our generator, then recall" if drawn else row["method"]
    return f"{FROM[row['source']]}, {way}: target recall minus plain training's"


EVIDENCE = (
    Evidence(C1, lambda r: f"{FROM[r['source']]}: target recall after minus before", "03_gap_analysis", "transfers",
             "difference"),
    Evidence(C2, _gap, "03_gap_analysis", "gaps", "gap"),
    Evidence(C3, lambda r: f"{FROM[r['source']]}: gap of {r['from']} minus that of {r['to']}", "04_capability",
             "capability_changes", "decrease of gap", ends_of_the_ladder),
    Evidence(C4, _forgetting, "05_unlearning", "unlearning_headline", "difference",
             lambda t: (t["unlearned"] == "either") & t["method"].str.startswith("pooled"), p="p"),
    Evidence(C5, _hops, "06_multihop", "multihop_claim", "difference",
             lambda t: t["task"].isin(["direct", "step by step"])),
    Evidence(C6, _way, "07_mitigation", "mitigation_tests", "change of target recall",
             lambda t: t["method"].isin(["captions", "self-labelled", "describe, then recall"]),
             ends="change of target recall "),
)  # fmt: skip


def claims(folder: Path) -> pd.DataFrame:
    """All claims, from the tables in a folder: effect with both intervals, replicates, adjusted p, verdict.

    What has no table there yet is a row whose verdict is "not run"; a table without such rows has nothing to say.
    """
    parts = []
    for evidence in EVIDENCE:
        file = folder / f"{evidence.table}.csv"
        rows = pd.read_csv(file, dtype={"each": str, f"{evidence.ends}each": str}) if file.is_file() else pd.DataFrame()
        rows = rows[evidence.rows(rows)] if len(rows) else rows
        made = [_row(evidence, row) for _, row in rows.iterrows()]
        parts += made or [_named(evidence) | {"test": "", "verdict": UNSAID if file.is_file() else "not run"}]
    return pd.DataFrame(parts).reindex(columns=COLUMNS)


def _named(evidence: Evidence) -> dict[str, object]:
    return {"claim": evidence.claim, "measure": "said", "notebook": evidence.notebook, "table": f"{evidence.table}.csv"}


def _row(evidence: Evidence, row: pd.Series) -> dict[str, object]:
    ends = {end: row[f"{evidence.ends}{end}"] for end in INTERVAL[1:]}
    measure = row.get("measure", "said")
    own = {"test": evidence.what(row), "measure": BITS if measure == "exposure" else measure}
    p = row[evidence.p]
    numbers = {"estimate": row[evidence.effect], **ends, "p holm": p, "people p": row.get("people p")}
    found = row["verdict"] if pd.notna(row["verdict"]) else UNSAID
    return _named(evidence) | own | numbers | {"replicates": len(values(ends["each"])), "verdict": found}


def sentence(table: pd.DataFrame) -> str:
    """How much can be said, in words."""
    counts = [int(n) for n in table["replicates"].dropna()]
    if not any(counts):
        return "Nothing can be said yet: run the notebooks 03 to 07 first."
    if max(counts) == 1:
        return (
            "**One replicate: too little to say much.** Intervals and tests are over its people alone, and do not see "
            "the luck of a pretraining. `make figures` runs the standard profile."
        )
    return f"Up to {max(counts)} replicates: intervals and tests are over them; beside each, over people within them."


# By rule of the Snakefile that draws what a claim rests on: the rules that it needs, with their minutes in run.csv.
NEEDS = {
    "gap_analysis": ("train",),
    "capability": ("train",),
    "unlearning": ("train", "unlearn"),
    "multihop": ("hops",),
    "mitigation": ("train", "mitigate"),
}

WORDS = {SUPPORTED: f"**{SUPPORTED}**", REVERSED: f"**{REVERSED}**", EQUIVALENT: f"*{EQUIVALENT}*"}


def markdown(table: pd.DataFrame) -> str:
    """The table as README shows it, a row a test."""
    lines = ["| claim and test | measure | effect | over replicates | over people | p (Holm) | verdict | see |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for claim, rows in table.groupby("claim", sort=False):
        lines.append(f"| **{claim}** | | | | | | | [{rows['notebook'].iloc[0][:2]}]({_path(rows)}) |")
        for _, row in rows.iterrows():
            effect = "" if pd.isna(row["estimate"]) else f"{row['estimate']:+.2f}"
            outer, inner = (_ends(row[low], row[high]) for low, high in (INTERVAL[1:3], INTERVAL[3:5]))
            if row["replicates"] == 0:
                outer = "too few replicates memorized the source"
            elif pd.notna(row["replicates"]):
                outer += f" n = {row['replicates']:.0f}"
            p = "" if pd.isna(row["p holm"]) else "< 0.001" if row["p holm"] < 0.001 else f"{row['p holm']:.3f}"
            lines.append(
                f"| {row['test']} | {row['measure']} | {effect} | {outer} | {inner} | {p} "
                f"| {WORDS.get(row['verdict'], row['verdict'])} | [csv](figures/{row['table']}) |"
            )
    return "\n".join(lines)


def _ends(low: float, high: float) -> str:
    return "" if pd.isna(low) else f"[{low:.2f}, {high:.2f}]"


def _path(rows: pd.DataFrame) -> str:
    return f"notebooks/{rows['notebook'].iloc[0]}.ipynb"


def times(folder: Path, earlier: pd.DataFrame | None = None) -> pd.DataFrame:
    """What the jobs of `make figures` took, from Snakemake's benchmark files: a row a rule, minutes and GB; on which
    machine, and of which commit; rules that are not among them as in an `earlier` table. Raises ValueError where there
    are none."""
    files = sorted(folder.glob("*.tsv"))
    parts = [pd.read_csv(file, sep="\t").assign(rule=file.stem.partition("-")[0]) for file in files]
    if not parts:
        raise ValueError(f"nothing in {folder} says what the run took: run `make figures` first")
    rows = pd.concat(parts).groupby("rule", sort=False)
    table = rows.agg(jobs=("s", "size"), minutes=("s", "sum"), cpu=("cpu_time", "sum"), memory=("max_rss", "max"))
    table = table.div(pd.Series({"jobs": 1, "minutes": 60, "cpu": 60, "memory": 1024})).astype({"jobs": int})
    table = table.rename(columns={"cpu": "CPU minutes", "memory": "most memory, GB"}).reset_index()
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=REPO, capture_output=True, text=True)
    table = table.assign(machine=_machine(), commit=head.stdout.strip())
    if earlier is not None:
        table = pd.concat([earlier[~earlier["rule"].isin(table["rule"])], table])
    return table.sort_values("rule", ignore_index=True)


def _machine() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.machine()


def provenance(spent: pd.DataFrame) -> str:
    """On which machine a run was made, how long it took and of which commits, in a line of README."""
    commits, machines = (list(dict.fromkeys(spent[column].astype(str))) for column in ("commit", "machine"))
    of = f"commit {commits[0]}" if len(commits) == 1 else f"commits {', '.join(commits)}"
    minutes, cpu, memory = spent["minutes"].sum(), spent["CPU minutes"].sum(), spent["most memory, GB"].max()
    return (
        f"`make figures`, {of}: {spent['jobs'].sum()} jobs of {minutes:.0f} minutes together, so {minutes / 2:.0f} "
        f"minutes on two cores ({', '.join(machines)}); {cpu:.0f} minutes of CPU time; {memory:.1f} GB at most in a "
        "process."
    )


def reproduction(spent: pd.DataFrame) -> str:
    """How each claim is tested anew, alone: the command, what it takes, its tables; rows of a Markdown table."""
    minutes = spent.set_index("rule")["CPU minutes"]
    lines = ["| to test anew | command | minutes of CPU time | tables |", "|---|---|---|---|"]
    for rule, needed in NEEDS.items():
        rows = [evidence for evidence in EVIDENCE if evidence.notebook.endswith(rule)]
        claims, tables = (", ".join(words) for words in (
            [row.claim.partition(" ")[0] for row in rows], [f"[{row.table}](figures/{row.table}.csv)" for row in rows]
        ))  # fmt: skip
        took = minutes.reindex([rule, *needed]).sum()
        lines.append(f"| {claims} | `make figures ONLY={rule}` | {took:.0f} | {tables} |")
    lines.append(f"| all | `make figures` | {minutes.sum():.0f} | [claims](figures/claims.csv) |")
    return "\n".join(lines)


def in_short(gaps: pd.DataFrame, dose: pd.DataFrame) -> str:
    """The gap in words, from tables of notebook 03: recall in both modalities, and after more steps."""
    said, first = (gaps[gaps["measure"] == measure].set_index("source") for measure in ("said", "closed-set"))
    least = int(100 * said["source recall"].min())
    across, likeliest = (rows["target recall"].map("{:.0%}".format) for rows in (said, first))
    steps = dose[(dose["dose"] == "steps") & (dose["measure"] == "said") & (dose["query"] != dose["source"])]
    longest = steps[steps["amount"] == steps["amount"].max()].set_index("source")
    later = longest["estimate"].map("{:.0%}".format)
    return (
        f"Asked in the modality that they learned names from, the models say at least {least}% of them. Asked in the "
        f"other one they say {across['image']} (learned from pictures) and {across['text']} (from descriptions); the "
        f"true name is the likeliest of the study's for {likeliest['image']} and {likeliest['text']}. Trained "
        f"{longest['amount'].iloc[0]:g} times as long, they say {later['image']} and {later['text']} "
        f"there ({len(values(longest['each'].iloc[0]))} replicates)."
    )


def marks(part: str) -> tuple[str, str]:
    """Between which lines a part of a document is written by a command."""
    return f"<!-- {part}, by `python -m xmem_utils readme` -->", f"<!-- end of {part} -->"


def filled(text: str, part: str, content: str) -> str:
    """A document with new content between the marks of a part. Raises ValueError where it has none."""
    start, end = marks(part)
    before, found, rest = text.partition(start)
    _, also, after = rest.partition(end)
    if not (found and also):
        raise ValueError(f"{part} has no place in it: put {start!r} and {end!r} there")
    return f"{before}{start}\n{content}\n{end}{after}"


def readme(text: str, table: pd.DataFrame, gaps: pd.DataFrame, dose: pd.DataFrame, spent: pd.DataFrame) -> str:
    """README with what was found, in a sentence and in a table, and what it takes to test it."""
    made = "\n\n".join([markdown(table), f"*{provenance(spent)}*", reproduction(spent)])
    return filled(filled(text, "in short", in_short(gaps, dose)), "claims", made)
