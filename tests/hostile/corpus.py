"""What users bring that may be wrong, as data: a YAML file an area, a case an input, with the outcome it must have.

A case has `what` (the input in words, for docs/reliability.md), the fields that its area's test builds the input
from, and one of `refused` (a regular expression that the one sentence must match) or `accepted` (what is made of the
input, in words).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import transformers
import yaml

HERE = Path(__file__).parent
REPORT = HERE.parents[1] / "docs" / "reliability.md"
LONGEST = 500  # characters of a sentence
PYTHON = f"Python {sys.version_info.major}.{sys.version_info.minor}"


@dataclass(frozen=True)
class Case:
    """One input with its outcome; `given` holds the fields of its area."""

    area: str
    what: str
    refused: str | None
    accepted: str | None
    given: dict[str, Any]


def cases(area: str) -> list[Case]:
    """The cases of tests/hostile/<area>.yaml."""
    out = []
    for entry in yaml.safe_load((HERE / f"{area}.yaml").read_text(encoding="utf-8")):
        fields = dict(entry)
        case = Case(area, fields.pop("what"), fields.pop("refused", None), fields.pop("accepted", None), fields)
        assert (case.refused is None) != (case.accepted is None), f"{area}: {case.what}: refused or accepted, not both"
        out.append(case)
    assert len({case.what for case in out}) == len(out), f"{area}.yaml has a case twice"
    return out


def parametrized(area: str) -> Any:
    """Decorator: the test runs once a case of the area, as `case`."""
    return pytest.mark.parametrize("case", [pytest.param(case, id=case.what) for case in cases(area)])


def damage(given: dict[str, Any], folder: Path) -> None:
    """Do to the files of a folder what the fields write, rename, cut and remove of a case say."""
    for name, text in given.get("write", {}).items():
        (folder / name).write_text(text)
    for old, new in given.get("rename", {}).items():
        (folder / old).rename(folder / new)
    if file := given.get("cut"):
        data = (folder / file).read_bytes()
        (folder / file).write_bytes(data[: len(data) // 2])
    for pattern in given.get("remove", ()):
        for file in folder.glob(pattern):
            file.unlink()


def every_case() -> list[Case]:
    """All cases of all areas."""
    return [case for file in sorted(HERE.glob("*.yaml")) for case in cases(file.stem)]


@dataclass
class Witness:
    """Runs what is tried and notes what happened, for the report."""

    seen: dict[tuple[str, str], str] = field(default_factory=dict)

    def refusal(self, case: Case, sentence: str, *secret: object) -> None:
        """Check and note a sentence that a user saw; `secret` parts of it differ from run to run (folders)."""
        for part in sorted(map(str, secret), key=len, reverse=True):
            sentence = sentence.replace(part, "…")
        sentence = sentence.strip().replace(transformers.__version__, "…")
        assert re.search(case.refused, sentence), f"{case.what}: expected {case.refused!r}, got {sentence!r}"
        assert "\n" not in sentence and len(sentence) <= LONGEST, f"no single sentence: {sentence!r}"
        self.seen[case.area, case.what] = f"refused: {sentence}"

    def __call__(self, case: Case, action: Callable[[], Any], *secret: object) -> Any:
        """What `action` returns when the case is to be accepted; else its ValueError or OSError is noted."""
        if case.accepted is not None:
            result = action()
            self.seen[case.area, case.what] = case.accepted
            return result
        with pytest.raises((ValueError, OSError)) as error:
            action()
        self.refusal(case, str(error.value), *secret)
        return None

    def text(self) -> str:
        """The report in Markdown: a table an area."""
        lines = [
            "# What was tried, and what happens",
            "",
            "Written by `make test` from the corpus in [tests/hostile](../tests/hostile).",
            f"{len(self.seen)} inputs that somebody may bring, by mistake or on purpose, each with its outcome.",
            f"… stands for a folder or a version; reasons in brackets are those of {PYTHON} and its libraries.",
        ]
        for area in sorted({area for area, _ in self.seen}):
            lines += ["", f"## {area.replace('_', ' ').capitalize()}", "", "| input | outcome |", "|---|---|"]
            lines += [f"| {_cell(w)} | {_cell(o)} |" for (a, w), o in sorted(self.seen.items()) if a == area]
        return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """Text that a Markdown table shows as it is."""
    shown = text.encode("unicode_escape").decode() if any(not c.isprintable() for c in text) else text
    return re.sub(r"([\\|<>*_`\[\]&])", r"\\\1", shown)
