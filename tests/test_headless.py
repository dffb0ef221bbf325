"""Notebooks from the terminal: parameters checked first, progress in lines, the graph complete."""

import base64
import io
import os
import shlex
import subprocess
import sys

import nbformat
import pytest
from nbformat import v4
from PIL import Image
from snakemake.cli import get_argument_parser

from xmem_utils import headless, params, paths, progress, replicates
from xmem_utils.cli import main


def test_values_are_read_as_what_the_notebook_declares():
    given = ["replicates=3", "learning_rate=1e-3", "source=text", "dose=true", "people="]
    assert headless.checked("02_training", given)[0] == {
        "replicates": 3, "learning_rate": 1e-3, "source": "text", "dose": True, "people": ""
    }  # fmt: skip


def test_what_is_wrong_is_said_before_a_kernel_starts(tmp_path):
    for name, given in (("03_gap", []), ("03_gap_analysis", ["seed=5"]), ("07_mitigation", ["methods=nothing"])):
        with pytest.raises(ValueError, match="unknown"):
            headless.run(name, given, tmp_path / "out.ipynb")
    assert not list(tmp_path.iterdir())


def test_the_copy_of_an_earlier_run_stays_until_a_new_one_is_complete(tmp_path, monkeypatch):
    notebook = nbformat.read(paths.NOTEBOOKS / "01_data_synthesis.ipynb", as_version=4)
    source = "raise RuntimeError('no\\nluck')"
    notebook.cells = [*notebook.cells[:3], nbformat.v4.new_code_cell(source)]
    nbformat.write(notebook, tmp_path / "fails.ipynb")
    monkeypatch.setattr(headless, "find", lambda name: tmp_path / "fails.ipynb")
    out, unfinished = tmp_path / "out.ipynb", tmp_path / "unfinished-out.ipynb"
    out.write_text("earlier")
    with pytest.raises(
        SystemExit, match=r"cell \d failed with RuntimeError: no luck; its executed copy up to there is"
    ):
        main(["run", "01_data_synthesis", "--out", str(out)])
    assert out.read_text() == "earlier"
    assert nbformat.read(unfinished, as_version=4).cells[-1].outputs[0]["ename"] == "RuntimeError"
    notebook.cells.pop()
    nbformat.write(notebook, tmp_path / "fails.ipynb")
    assert headless.run("01_data_synthesis", [], out) == out
    assert nbformat.read(out, as_version=4).cells and not unfinished.exists()


def test_shards_are_a_partition():
    items = list(range(30))
    for n in (1, 4, 7, 30):
        assert [x for k in range(1, n + 1) for x in params.shard_of(items, f"{k}/{n}")] == items


def test_progress_is_lines_in_a_headless_run(monkeypatch, capsys):
    monkeypatch.setenv(progress.LINES, "1")
    monkeypatch.setattr(progress, "QUIET", 0.0)
    assert list(progress.progress("ab", "things")) == ["a", "b"]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == ["progress: things 1/2", "progress: things 2/2"]


def test_the_graph_has_every_notebook_and_explains_itself(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", "-p", "--cores", "2", "--config", "profile=standard"],
        cwd=paths.REPO, env={**os.environ, "XMEM_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    planned = done.stdout + done.stderr
    assert "reason: Missing output files" in planned
    assert f"tables={tmp_path}/figures" in planned, "the claims are read from what was just drawn"
    others = set(replicates.families()) - {replicates.LADDER}
    jobs = dict.fromkeys(("unlearn", "hops", "mitigate"), 10)
    jobs["train"] = 10 + sum(2 * len(replicates.seeds_of(family)) for family in others)
    alone = ["training", "base_model", "data_synthesis", "gap_analysis", "capability", "unlearning", "multihop"]
    jobs |= dict.fromkeys([*alone, "mitigation", "claims"], 1)
    for rule, count in jobs.items():
        assert any(line.split() == [rule, str(count)] for line in planned.splitlines()), planned


@pytest.mark.parametrize("only", ["", "multihop"])
def test_make_hands_snakemake_what_to_draw(only):
    asked = ["make", "-n", "figures", "CORES=2", f"ONLY={only}"]
    told = subprocess.run(asked, cwd=paths.REPO, capture_output=True, text=True, check=True).stdout
    [command] = [line for line in told.splitlines() if " -m snakemake " in line]
    given = get_argument_parser().parse_args(shlex.split(command)[3:])  # behind python -m snakemake
    assert [*given.targets] == only.split() and given.config == ["shards=2"]


def test_a_stripped_notebook_keeps_small_figures_and_what_nbval_compares(tmp_path):
    picture = io.BytesIO()
    Image.effect_noise((1400, 700), 80).convert("RGB").save(picture, "png")
    figure = {"image/png": base64.b64encode(picture.getvalue()).decode(), "text/plain": "<Figure size 1400x700>"}
    outputs = [v4.new_output("stream", text="3 s"), v4.new_output("display_data", figure)]
    marked = [v4.new_output("stream", text="kept: True\n")]
    cells = [v4.new_code_cell("draw()", outputs=outputs, execution_count=3),
             v4.new_code_cell("# NBVAL_CHECK_OUTPUT\nprint()", outputs=marked, execution_count=4)]  # fmt: skip
    file = tmp_path / "drawn.ipynb"
    nbformat.write(v4.new_notebook(cells=cells, metadata={"papermill": {"duration": 3}}), file)
    headless.strip(file)
    drawn, compared = nbformat.read(file, as_version=4).cells
    assert compared.outputs == marked and compared.execution_count == 4
    [output] = drawn.outputs
    assert list(output.data) == ["image/png"] and drawn.execution_count == 3
    small = Image.open(io.BytesIO(base64.b64decode(output.data["image/png"])))
    assert small.size == (headless.WIDEST, 500) and len(output.data["image/png"]) < len(figure["image/png"]) / 2
    once = file.read_bytes()
    headless.strip(file)
    assert nbformat.read(file, as_version=4).cells[0].outputs[0].data.keys() == {"image/png"}
    assert len(file.read_bytes()) <= len(once)
