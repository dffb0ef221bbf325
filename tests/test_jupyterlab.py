"""Notebook 09 in a real JupyterLab: a click changes the answer."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest
from nbformat import v4
from pages import needs_chromium, opened

from xmem_utils import paths
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.params import Profile

PROFILE = Profile(personas=6, replicates=1, train_views=4, test_views=2, epochs=8, dose_views=(4,), resamples=200)
WAIT = 120_000  # ms


@pytest.fixture
def lab(vlm, own_store, tmp_path):
    """The address of a notebook that asks a model trained here."""
    Memorization(vlm, PROFILE, 8, 2e-3).run(Memorization(vlm, PROFILE, 8, 2e-3).condition("image", 11))
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    for name in ("RUNS", "PERSONAS"):
        (home / "data" / name.lower()).symlink_to(getattr(paths, name))
    code = "from xmem_utils.explore import asking, stored\nasking(stored())"
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}  # or it asks which
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(code)], metadata=kernel), tmp_path / "ask.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XMEM_HOME": str(home),
        "PYTHONPATH": str(paths.REPO),
        "JUPYTER_CONFIG_DIR": str(tmp_path),
    }
    options = {"IdentityProvider.token": "", "ServerApp.root_dir": tmp_path, "ServerApp.port": port,
               "ServerApp.open_browser": False, "ServerApp.allow_root": True}  # fmt: skip
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(120):
            try:
                json.load(urllib.request.urlopen(f"{address}/api/status", timeout=1))
                break
            except OSError:
                assert server.poll() is None, "JupyterLab did not start"
                time.sleep(0.5)
        yield f"{address}/lab/tree/ask.ipynb"
    finally:
        server.terminate()
        server.wait(timeout=30)


@needs_chromium
def test_a_click_changes_the_answer(lab):
    with opened() as page:
        page.goto(lab)
        page.locator(".jp-Notebook .jp-Cell").first.click(timeout=WAIT)
        page.keyboard.press("Shift+Enter")
        ask = page.get_by_role("button", name="Ask")
        ask.wait_for(timeout=WAIT)
        ask.click()
        answer = page.locator(".jp-OutputArea b").first
        answer.wait_for(timeout=WAIT)
        first = answer.inner_text()
        page.locator(".widget-dropdown select").nth(1).select_option(index=3)
        ask.click()
        page.wait_for_function(
            "first => document.querySelector('.jp-OutputArea b').innerText != first", arg=first, timeout=WAIT
        )
