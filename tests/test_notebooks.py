"""The notebooks, run as users run them."""

import subprocess
import sys

import nbformat
import pandas as pd
import pytest

from xmem_utils import notebook as notebooks
from xmem_utils import params, paths

NOTEBOOKS = [notebooks.find(name) for name in notebooks.known()]


def papermill(notebook, out, home, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "papermill", "--no-progress-bar", "--cwd", str(paths.NOTEBOOKS),
         str(paths.NOTEBOOKS / f"{notebook}.ipynb"), str(out), *arguments],
        env={**__import__("os").environ, "XMEM_HOME": str(home), "MPLBACKEND": "agg", "HF_HUB_OFFLINE": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_clean_and_its_parameters_are_typed(path):
    notebook = nbformat.read(path, as_version=4)
    assert not {"papermill", "widgets"} & set(notebook.metadata)
    cells = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    space = {}
    exec(cells[0].source, space)
    fields = {k: v for k, v in space.items() if not k.startswith("__")}
    assert params.freeze(notebooks.schema_of(path.stem), fields)
    lines = [line for line in cells[0].source.splitlines() if line.strip()]
    assert all("  # " in line and ": " in line.split("=")[0] for line in lines), "every parameter: type and comment"
    following = notebook.cells[notebook.cells.index(cells[0]) + 1]
    assert f'start("{path.stem}", globals())' in following.source
    for cell in notebook.cells:
        checked = cell.cell_type == "code" and "NBVAL_CHECK_OUTPUT" in cell.source
        if cell.cell_type == "code":
            pictures = [set(output.get("data", {})) == {"image/png"} for output in cell.outputs]
            assert bool(cell.outputs) if checked else all(pictures), (
                "others than checked cells keep their pictures alone"
            )
            assert (cell.execution_count is not None) == bool(cell.outputs), "nbval refuses outputs without a count"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("-p", "epoch", "3"), "unknown parameter 'epoch'; did you mean 'epochs'?"),
        (("-p", "model", "xmem-tiny-q"), "unknown model 'xmem-tiny-q'"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_wrong_parameter_is_refused_before_training(tmp_path, arguments, sentence):
    done = papermill("02_training", tmp_path / "out.ipynb", tmp_path, *arguments)
    assert done.returncode != 0
    assert sentence in done.stderr
    assert not (tmp_path / "data" / "runs").exists()


def test_the_study_runs_end_to_end_on_the_quick_profile(tmp_path):
    for notebook in ("01_data_synthesis", "02_training", "03_gap_analysis"):
        done = papermill(notebook, tmp_path / f"{notebook}.ipynb", tmp_path, "-p", "profile", "quick")
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("personas", "gap_matrix", "gap_curves", "dose_response"):
        for suffix in ("png", "svg", "csv"):
            assert (tmp_path / "data" / "figures" / f"{name}.{suffix}").stat().st_size > 0
    table = pd.read_csv(tmp_path / "data" / "figures" / "gap_matrix.csv")
    said = table[(table["task"] == "view") & (table["measure"] == "said")]
    recall = said.set_index(["source", "query"])["estimate"]
    chance = 1 / params.PROFILES["quick"].personas
    for source in params.MODALITIES:
        own, across = recall[source, source], recall[source, params.other(source)]
        assert own >= 0.9
        assert chance < across < own
        assert recall["none", source] <= 2 * chance
