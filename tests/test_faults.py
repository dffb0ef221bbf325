"""What goes wrong in the night: kills, two at once, full and read-only disks, dead kernels, stale locks.

Real processes run a very small study; the short forms are part of `make test`, the long ones of
`make test-slow`.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pandas as pd
import pytest

from xmem_utils import paths
from xmem_utils.memorization.experiment import MemorizationCondition

# Four conditions on four people; every training is noted in trained.txt, the table is written at the end.
STUDY = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from xmem_utils import paths
from xmem_utils.memorization import experiment
from xmem_utils.params import Profile
from xmem_utils.vlm.load import load_vlm

if __name__ == "__main__":
    memorize = experiment.memorize

    def noted(vlm, examples, training, *rest):
        with open(paths.HOME / "trained.txt", "a") as log:
            log.write(f"{training.epochs} {len(examples)} {examples[0].prompt.sum()}\\n")
        return memorize(vlm, examples, training, *rest)

    experiment.memorize = noted
    profile = Profile(personas=4, replicates=1, train_views=4, test_views=2, epochs=2, dose_views=(2, 4), resamples=100)
    study = experiment.Memorization(load_vlm("xmem-tiny-s-11"), profile, 4, 2e-3)
    runs = study.run_all(study.conditions(dose=True))
    study.collect(runs).to_parquet(paths.HOME / sys.argv[1])
"""


def start(home, table="table.parquet", **options):
    script = home / "study.py"
    home.mkdir(parents=True, exist_ok=True)
    if not script.exists():
        script.write_text(STUDY)
    environment = {**os.environ, "XMEM_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(script), table], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True, **options,
    )  # fmt: skip


def finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]


def kill(process):
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: its home, and how long it took."""
    home = tmp_path_factory.mktemp("whole")
    began = time.monotonic()
    finish(start(home))
    return home, time.monotonic() - began


def killed_at_random(whole, home, times):
    expected, seconds = whole
    rng = random.Random(times)
    for _ in range(times):
        process = start(home)
        time.sleep(rng.uniform(0.3, 1.0) * seconds)
        kill(process)
    finish(start(home))
    pd.testing.assert_frame_equal(pd.read_parquet(home / "table.parquet"), pd.read_parquet(expected / "table.parquet"))
    assert not list((home / "data" / "runs" / "memorization").glob("*partial*")), "what the killed left is gone"


def test_a_run_killed_twice_ends_with_the_same_tables(whole, tmp_path):
    killed_at_random(whole, tmp_path, 2)


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_with_the_same_tables(whole, tmp_path):
    killed_at_random(whole, tmp_path, 10)


def test_two_at_once_train_each_condition_once(whole, tmp_path):
    both = [start(tmp_path, f"{i}.parquet") for i in range(2)]
    for process in both:
        finish(process)
    expected = sorted((whole[0] / "trained.txt").read_text().splitlines())
    assert sorted((tmp_path / "trained.txt").read_text().splitlines()) == expected
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "0.parquet"), pd.read_parquet(tmp_path / "1.parquet"))


def test_every_kind_of_stored_file_may_be_hurt(whole, tmp_path):
    shutil.copytree(whole[0], tmp_path / "hurt")
    runs = sorted(f for f in (tmp_path / "hurt" / "data" / "runs" / "memorization").glob("[!.]*"))
    files = ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "curve.parquet", "manifest.json"]
    for k, (run, name) in enumerate(zip(runs, files, strict=True)):
        content = bytearray((run / name).read_bytes())
        content[len(content) // 2] ^= 1
        (run / name).write_bytes(bytes(content) if k % 2 else bytes(content[: len(content) // 2]))
    people = next((tmp_path / "hurt" / "data" / "personas").glob("*/train.parquet"))
    people.write_bytes(people.read_bytes()[:1000])
    (tmp_path / "hurt" / "trained.txt").unlink()
    process = start(tmp_path / "hurt")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert all(run.name in errors for run in runs), "every damaged run is named"
    assert len((tmp_path / "hurt" / "trained.txt").read_text().splitlines()) == 4
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "hurt" / "table.parquet"), pd.read_parquet(whole[0] / "table.parquet")
    )


def test_a_lock_of_a_dead_process_holds_nobody_up(whole, tmp_path):
    process = start(tmp_path)
    locks = tmp_path / "data" / "runs" / "memorization"
    while not list(locks.glob(".*.lock")) and process.poll() is None:
        time.sleep(0.02)
    kill(process)
    assert list(locks.glob(".*.lock")), "the killed process left its lock"
    finish(start(tmp_path))


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(home / "data")], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs takes rights this user lacks")
    try:
        (home / "data" / "personas").mkdir()
        process = start(home)
        _, errors = process.communicate(timeout=300)
        assert process.returncode != 0
        assert "cannot be stored under" in errors and "No space left" in errors
        left = [f.name for f in (home / "data" / "runs" / "memorization").glob("*")]
        assert all(name.startswith(".") and "partial" not in name for name in left)
    finally:
        subprocess.run(["umount", str(home / "data")], check=True)


def test_a_read_only_store_is_read_and_says_when_it_cannot_be_written(whole, tmp_path):
    shutil.copytree(whole[0] / "data" / "runs" / "memorization", tmp_path / "runs")
    folder = next(f for f in (tmp_path / "runs").glob("[!.]*"))
    condition = MemorizationCondition.model_validate_json((folder / "condition.json").read_text())
    key = next(folder.glob("records-*.parquet")).stem.removeprefix("records-")
    code = f"""
import os
from pathlib import Path
from xmem_utils import store
from xmem_utils.memorization.experiment import MemorizationCondition
condition = MemorizationCondition.model_validate_json(Path({str(folder / "condition.json")!r}).read_text())
if os.getuid() == 0:
    os.setuid(65534)
root = Path({str(tmp_path / "runs")!r})
print(len(store.evaluated(store.trained(condition, None, root), {key!r}, None).records))
store.trained(condition.model_copy(update={{"replicate": 99}}), None, root)
"""
    os.chmod(tmp_path / "runs", 0o555)
    for folder in tmp_path.resolve().parents:  # the other user must be able to get here
        if folder.stat().st_uid == os.getuid():
            folder.chmod(folder.stat().st_mode | 0o055)
    tmp_path.chmod(0o755)
    for file in (tmp_path / "runs").rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o444)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=paths.REPO)
    os.chmod(tmp_path / "runs", 0o755)
    assert done.stdout.strip().isdigit(), done.stderr[-2000:]
    assert f"{condition.model_copy(update={'replicate': 99}).slug} cannot be stored under" in done.stderr
    assert "Permission denied" in done.stderr


def test_a_kernel_that_dies_is_one_sentence(tmp_path, monkeypatch):
    from xmem_utils import cli as commands
    from xmem_utils import headless

    notebook = nbformat.read(paths.NOTEBOOKS / "03_gap_analysis.ipynb", as_version=4)
    notebook.cells.insert(3, nbformat.v4.new_code_cell("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"))
    nbformat.write(notebook, tmp_path / "dies.ipynb")
    monkeypatch.setattr(headless, "find", lambda name: tmp_path / "dies.ipynb")
    with pytest.raises(SystemExit, match="03_gap_analysis: its kernel died"):
        commands.main(["run", "03_gap_analysis", "--out", str(tmp_path / "out.ipynb")])
