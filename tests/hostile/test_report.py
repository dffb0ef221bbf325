"""docs/reliability.md says what the corpus showed; this file comes last in its folder."""

import pytest
from corpus import PYTHON, REPORT, every_case


def test_the_corpus_is_large():
    assert len(every_case()) >= 100


def test_the_report_is_what_the_run_showed(witness):
    if witness.seen.keys() < {(case.area, case.what) for case in every_case()}:
        pytest.skip("only a part of the corpus ran")
    before = REPORT.read_text(encoding="utf-8") if REPORT.exists() else PYTHON
    if PYTHON not in before:
        pytest.skip("another Python wrote the report, and words its errors otherwise")
    REPORT.write_text(witness.text(), encoding="utf-8")
    if before != witness.text():
        pytest.fail(f"{REPORT.name} has been written anew: read it and commit it")
