"""The walk-throughs in docs/, followed to the letter: their commands and their code."""

import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module

from xmem_utils import paths
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.params import Profile
from xmem_utils.unlearning import losses, methods
from xmem_utils.unlearning.experiment import Unlearning


def blocks(document):
    """(language, text) of every block of code in a document, in order."""
    text = (paths.REPO / "docs" / f"{document}.md").read_text("utf-8")
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def follow(document, folder):
    """All blocks of a document in a folder, one after the other; returns what they print."""
    environment = os.environ | {"XMEM_HOME": str(folder), "PYTHONPATH": str(paths.REPO)}
    printed = ""
    for language, block in blocks(document):
        words = ["python", "-c", block] if language == "python" else shlex.split(block)
        assert words[0] == "python"
        run = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 900}
        done = subprocess.run([sys.executable, *words[1:]], **run)
        assert done.returncode == 0, f"{block}\n{done.stderr}"
        printed += done.stdout
    return printed


def test_your_own_people(tmp_path):
    printed = follow("your_own_people", tmp_path)
    assert re.search(r"^0 +Ada Lin", printed, re.MULTILINE), "she is shown, and the likeliest of six"


def test_your_own_model(tmp_path):
    shutil.copytree(paths.BASE_MODELS / "xmem-tiny-xs-11", tmp_path / "my_model")
    printed = follow("your_own_model", tmp_path)
    assert "parameters" in printed and "probability" in printed


def test_add_a_method(vlm, own_store, tmp_path, monkeypatch):
    (_, loss), (_, row) = [block for block in blocks("add_a_method") if block[0] == "python"]
    whole = tmp_path / "losses_with_it.py"  # the store follows a loss to its source
    whole.write_text(f"{inspect.getsource(losses)}\n\n{loss}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(losses, "towards_uniform", import_module("losses_with_it").towards_uniform, raising=False)
    method = eval(row, vars(methods))
    monkeypatch.setitem(Unlearning.methods, method.name, method)
    assert {"learning_rate", "retain_weight"} == set(method.settings()[0]) and not method.reference
    profile = Profile(personas=4, replicates=1, train_views=4, test_views=2, epochs=12, dose_views=(4,), resamples=100)
    study = Unlearning(Memorization(vlm, profile, 8, 2e-3))
    before, after = (
        study.run(study.condition(name, settings, "text", 11, forget=(0, 1)))
        for name, settings in (("before", {}), (method.name, {**method.settings()[0], "steps": 20.0}))
    )
    left = [
        run.records.query("group == 'forget' and task == 'view' and query == 'text'")["exact"].mean()
        for run in (before, after)
    ]
    assert left[1] < left[0]
