"""Notebooks from the terminal: parameters checked first, progress in lines, the graph complete."""

import os
import subprocess
import sys

import pytest

from xmem_utils import code, headless, params, paths, progress
from xmem_utils.vlm import tiny


def test_values_are_read_as_what_they_are():
    given = headless.parse(["seeds=5", "learning_rate=1e-3", "source=text", "pretrain=true", "people=", "shard=2/6"])
    assert given == {
        "seeds": 5, "learning_rate": 1e-3, "source": "text", "pretrain": True, "people": "", "shard": "2/6"
    }  # fmt: skip
    with pytest.raises(ValueError, match="name=value"):
        headless.parse(["seeds"])


@pytest.mark.parametrize(
    ("name", "given", "sentence"),
    [
        ("03_gap", {}, "unknown notebook '03_gap'"),
        ("03_gap_analysis", {"seed": 5}, "unknown parameter 'seed'; did you mean 'seeds'?"),
        ("03_gap_analysis", {"seeds": "five"}, "seeds='five'"),
        ("03_gap_analysis", {"profile": "small"}, "unknown profile 'small'"),
        ("00_base_model", {"size": "huge"}, "size='huge'"),
        ("02_training", {"shard": "0/2"}, "shard='0/2': expected k/n"),
    ],
)
def test_what_is_wrong_is_said_before_a_kernel_starts(tmp_path, name, given, sentence):
    with pytest.raises(ValueError) as error:
        headless.run(name, given, tmp_path / "out.ipynb")
    assert sentence in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_whole_number_is_a_fine_learning_rate(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(headless.papermill, "execute_notebook", lambda *args, **kwargs: calls.append(args[2]))
    headless.run("02_training", {"learning_rate": 1}, tmp_path / "out.ipynb")
    assert calls == [{"learning_rate": 1.0}]


def test_shards_are_a_partition():
    items = list(range(30))
    for n in (1, 4, 7, 30):
        assert [x for k in range(1, n + 1) for x in params.shard_of(items, f"{k}/{n}")] == items
    with pytest.raises(ValueError, match="expected k/n"):
        params.shard_of(items, "3/2")


def test_progress_is_lines_in_a_headless_run(monkeypatch, capsys):
    monkeypatch.setenv(progress.LINES, "1")
    monkeypatch.setattr(progress, "QUIET", 0.0)
    assert list(progress.progress("ab", 2, "things")) == ["a", "b"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["progress: things 1/2", "progress: things 2/2"]


def test_the_meaning_of_code_is_what_it_does():
    before = 'def f(x):\n    """Doc."""\n    return x + 1  # comment\n'
    assert code.meaning(before) == code.meaning("def f(x):\n\n    return (x +\n 1)\n")
    assert code.meaning(before) != code.meaning(before.replace("1", "2"))


def test_a_change_of_what_trains_changes_every_condition(monkeypatch):
    before = code.fingerprint()
    meaning = code.meaning
    monkeypatch.setattr(code, "meaning", lambda source: meaning(source).replace("cross_entropy", "mse_loss"))
    code.of.cache_clear()
    assert code.fingerprint() != before, "memorize.py is part of the fingerprint"
    monkeypatch.undo()
    code.of.cache_clear()
    assert code.fingerprint() == before


def test_a_profile_from_a_file(tmp_path):
    file = tmp_path / "mine.yaml"
    good = "personas: 7\nseeds: [3, 4]\ntrain_views: 2\ntest_views: 2\nepochs: 1\ndose_views: [1]\nresamples: 100\n"
    file.write_text(good)
    assert params.profile_named(str(file)).seeds == (3, 4)
    for text, sentence in (
        ("personas: many\n", "personas='many'"),
        ("personas: 7\n", "seeds is missing"),
        ("seeds: 3\n", "seeds must be a list"),
        ("1: 20\n", "must map"),
        (good.replace("[3, 4]", "[3, 3]"), "a value stands there twice"),
        (good.replace("[3, 4]", "[-1]"), "greater than or equal to 0"),
        (good.replace("[1]", "[0]"), "greater than or equal to 1"),
        ("a: [\n", "cannot be read"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            params.profile_named(str(file))
    with pytest.raises(ValueError, match="cannot be read"):
        params.profile_named(str(tmp_path / "none.yaml"))


def test_the_graph_has_every_notebook_and_explains_itself(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "--cores", "2", "--config", "profile=standard"],
        cwd=paths.REPO, env={**os.environ, "XMEM_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    planned = done.stdout + done.stderr
    assert "reason: Missing output files" in planned
    shards = 6 * len(tiny.SIZES)
    alone = ("base_model", "data_synthesis", "gap_analysis", "capability", "unlearning", "multihop", "mitigation")
    for rule, jobs in [("train", shards), ("unlearn", 6), ("hops", 6), ("mitigate", 6), *((rule, 1) for rule in alone)]:
        assert any(line.split() == [rule, str(jobs)] for line in planned.splitlines()), planned
