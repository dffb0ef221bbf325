"""A checkout, a home or a profile under an odd name, through make and Snakemake; the notebook itself is played."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import corpus
import pytest
from test_profiles import GOOD, text_of

from xmem_utils import paths

PROFILE = text_of(GOOD)
DRAWN = sorted(f"{name}.{kind}" for name in ("personas", "persona_attributes") for kind in ("png", "svg", "csv"))

# Stands in for the environment's Python: Snakemake is the real one, for one notebook; that notebook draws `$TEXT`.
PLAYED = f"""#!/bin/sh
case "$*" in
*snakemake*) exec "{sys.executable}" "$@" --until data_synthesis ;;
esac
echo drawn >> "$LOG"
mkdir -p "$XMEM_FIGURES"
for file in {" ".join(DRAWN)}; do
  echo "$TEXT" > "$XMEM_FIGURES/$file"
  case "$FAULT" in
  fail) exit 1 ;;
  wait) touch "$LOG.waits"; sleep 60 ;;
  esac
done
"""


class Checkout:
    """A copy of what the graph needs, with an environment that plays the notebook."""

    def __init__(self, folder: Path, log: Path) -> None:
        self.folder, self.log, self.figures = folder, log, folder / "figures"
        folder.mkdir(parents=True)
        for name in ("Makefile", "Snakefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(paths.REPO / name, folder)
        for name in ("notebooks", "profiles", "xmem_utils"):
            shutil.copytree(paths.REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "data" / "base").mkdir(parents=True)
        python = folder / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(PLAYED, encoding="utf-8")
        python.chmod(0o755)
        (folder / ".venv" / ".installed").touch()

    def start(self, *goal: str, text: str = "", fault: str = "", **environment: str) -> subprocess.Popen:
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("XMEM_", "MAKE", "MFLAGS"))}
        own = {"PYTHONPATH": str(self.folder), "LOG": str(self.log), "TEXT": text, "FAULT": fault, "CORES": "1"}
        return subprocess.Popen(
            ["make", *goal], cwd=self.folder, env={**plain, **own, **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def make(self, *goal: str, **options: str) -> str:
        """All that is printed; ValueError with Snakemake's sentence when make fails."""
        process = self.start(*goal, **options)
        printed = process.communicate(timeout=100)[0]
        if process.returncode:
            said = re.search(r"^(?:ValueError|WorkflowError) in file .*:\n(.*)$", printed, re.M)
            raise ValueError(said[1] if said else printed)
        return printed

    def drawings(self) -> int:
        """How often the notebook was run."""
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def texts(self) -> dict[str, str]:
        return {file.name: file.read_text().strip() for file in self.figures.iterdir()}


@corpus.parametrized("paths")
def test_odd_names(case, witness, tmp_path):
    given = {"checkout": "checkout", "home": None, "profile": None, **case.given}
    checkout = Checkout(tmp_path / given["checkout"], tmp_path / "log")
    goal, home = ["quick"], checkout.folder / "build" / "quick"
    if given["home"] or given["profile"]:
        home = tmp_path / (given["home"] or "home")
        goal = ["figures"]
    environment = {"XMEM_HOME": str(home)} if goal == ["figures"] else {}
    if given["profile"]:
        if case.accepted:
            (checkout.folder / given["profile"]).write_text(PROFILE, encoding="utf-8")
        environment["PROFILE"] = given["profile"]
    witness(case, lambda: checkout.make(*goal, text="new", **environment), tmp_path.resolve(), tmp_path)
    found = sorted(p.name for p in (home / "figures").glob("*")) if (home / "figures").exists() else []
    assert found == (DRAWN if case.accepted else [])


@pytest.fixture
def checkout(tmp_path):
    """With figures that are committed."""
    made = Checkout(tmp_path / "größe mit leer", tmp_path / "log")
    made.figures.mkdir()
    for name in DRAWN:
        (made.figures / name).write_text("old")
    return made


def test_figures_are_the_old_ones_or_the_new_ones(checkout):
    old, new = dict.fromkeys(DRAWN, "old"), dict.fromkeys(DRAWN, "new")
    with pytest.raises(ValueError):
        checkout.make("figures", text="new", fault="fail")
    assert checkout.texts() == old, "a notebook that fails leaves them"
    for kill in (signal.SIGKILL, signal.SIGINT):
        waits = Path(f"{checkout.log}.waits")
        waits.unlink(missing_ok=True)
        process = checkout.start("figures", text="new", fault="wait")
        while not waits.exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        assert checkout.texts() == old, "they stay while new ones are drawn"
        os.killpg(process.pid, kill)
        process.communicate(timeout=60)
        assert checkout.texts() == old, f"{kill.name} leaves them"
    checkout.make("figures", text="new")
    assert checkout.texts() == new
    drawings = checkout.drawings()
    checkout.make("figures", text="newer")
    assert checkout.drawings() == drawings, "nothing changed, nothing is drawn"
    (checkout.figures / DRAWN[0]).unlink()
    checkout.make("figures", text="new")
    assert checkout.texts() == new, "one that was deleted is drawn again"


def test_profiles_are_told_apart_by_content(checkout):
    mine, other = checkout.folder / "a b" / "mine.yaml", checkout.folder / "c" / "mine.yaml"
    for file, people in ((mine, 7), (other, 8)):
        file.parent.mkdir()
        file.write_text(PROFILE.replace("7", str(people)))

    def drawn_for(file: Path, text: str) -> None:
        checkout.make("figures", text=text, PROFILE=str(file))
        assert checkout.texts() == dict.fromkeys(DRAWN, text)

    drawn_for(mine, "seven")
    drawn_for(other, "eight, in a file of the same name")
    drawn_for(mine, "seven again, though its own marks are there")
    before = checkout.drawings()
    checkout.make("figures", text="none", PROFILE=str(mine))
    assert checkout.drawings() == before, "nothing changed, nothing is drawn"
    mine.write_text(PROFILE.replace("7", "9"))
    drawn_for(mine, "nine: the content changed")


def test_lint_remarks_on_what_the_snakefile_explains_alone():
    command = [sys.executable, "-m", "snakemake", "--lint"]
    linted = subprocess.run(command, cwd=paths.REPO, capture_output=True, text=True, timeout=100)
    remarks = set(re.findall(r"^    \* (.*?):?$", linted.stdout + linted.stderr, re.M))
    assert remarks == {"No log directive defined", "Specify a conda environment or container for each rule."}
