"""Commands with what may go wrong around them: every one ends in one sentence, with a non-zero exit."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from corpus import parametrized

from xmem_utils import headless, paths
from xmem_utils.cli import main


def start(command, cwd=paths.REPO, **environment):
    return subprocess.Popen(
        [sys.executable, "-m", "xmem_utils", *command], cwd=cwd, env={**os.environ, "XMEM_THREADS": "1", **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def failed(action, capsys):
    """The last line of what a command says that ends with a non-zero exit."""
    with pytest.raises(SystemExit) as end:
        action()
    assert end.value.code not in (0, None)
    if isinstance(end.value.code, str):
        return end.value.code
    return capsys.readouterr().err.strip().splitlines()[-1]


def interrupted(command, home, pattern):
    """What a command says on Ctrl-C, which comes once something has appeared in XMEM_HOME."""
    process = start(command, XMEM_HOME=str(home))
    end = time.monotonic() + 300
    while not list(home.glob(pattern)) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    kernels = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors[-3000:]
    assert "Traceback" not in errors
    _, alive = psutil.wait_procs(kernels, timeout=30)
    assert not alive, "the kernel has ended"
    assert not list(home.rglob("*.partial-*")), "nothing half is left"
    return errors.splitlines()[-1]


@pytest.fixture
def moved(monkeypatch, tmp_path):
    """Let XMEM_HOME and XMEM_FIGURES point somewhere; all paths follow until the end of the test."""

    def move(where, figures):
        home = {"~": "~/new", "relative": "new"}.get(where, str(tmp_path / where))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XMEM_HOME", home)
        monkeypatch.setenv("XMEM_FIGURES", figures and str(tmp_path / figures))
        importlib.reload(paths)

    yield move
    monkeypatch.undo()
    importlib.reload(paths)


@pytest.fixture
def nobody():
    """Without the rights of root, who may write everywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@parametrized("commands")
def test_commands(case, witness, tmp_path, monkeypatch, capsys, moved, request):
    given = case.given
    (tmp_path / "folder").mkdir()
    (tmp_path / "unwritable").mkdir(mode=0o555)
    (tmp_path / "file").write_text("no notebook")
    places = {"folder": tmp_path / "folder", "file": tmp_path / "file"}
    command = [part.format(**places) for part in given["command"]]
    if "interrupt" in given:
        witness.refusal(case, interrupted(command, tmp_path / "folder", given["interrupt"]), tmp_path)
        return
    if "plain" in given:
        shutil.copytree(paths.PACKAGE, tmp_path / "site" / "xmem_utils", ignore=shutil.ignore_patterns("__pycache__"))
        where = paths.REPO / given["plain"].format(**places)
        process = start(command, where, PYTHONPATH=str(tmp_path / "site"), XMEM_HOME=str(tmp_path / "new"))
        out, errors = process.communicate(timeout=60)
        assert bool(process.returncode) == bool(case.refused)
        if case.refused:
            witness.refusal(case, errors, tmp_path)
        else:
            witness(case, lambda: out)
            assert out == f"no runs in {tmp_path}/new/data/runs\n"
        return
    moved(given.get("home", "new"), given.get("figures", ""))
    if given.get("home") == "unwritable":
        request.getfixturevalue("nobody")
    if case.refused:
        witness.refusal(case, failed(lambda: main(command), capsys), tmp_path)
        return
    copy = lambda notebook, out, *rest, **more: shutil.copy(notebook, out)  # noqa: E731
    monkeypatch.setattr(headless.papermill, "execute_notebook", copy)
    witness(case, lambda: main(command))
    said = capsys.readouterr().out.strip()
    if command[0] == "run":
        assert Path(said) == tmp_path / "new" / "data" / "executed" / "01_data_synthesis.ipynb"
        assert Path(said).is_file()
    else:
        assert said == f"no runs in {tmp_path / given['home']}/data/runs"


def test_a_fault_of_this_package_keeps_its_traceback(monkeypatch):
    from xmem_utils import store

    monkeypatch.setattr(store, "listing", lambda *given: int("x"))  # no sentence that anybody wrote
    with pytest.raises(ValueError, match="invalid literal"):
        main(["runs"])


def test_a_reader_that_goes_away_ends_a_command_quietly():
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "xmem_utils", "runs"], stdout=write, stderr=subprocess.PIPE, text=True, cwd=paths.REPO
    )
    os.close(write)
    assert (process.returncode, process.stderr) == (1, "")


def test_help_loads_neither_torch_nor_papermill():
    code = """
import sys
from xmem_utils.cli import main
try:
    main(["--help"])
finally:
    assert not {"torch", "transformers", "papermill", "pandas"} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=paths.REPO)
    assert done.returncode == 0 and "Run a notebook headlessly" in done.stdout, done.stderr
