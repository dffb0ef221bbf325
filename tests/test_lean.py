"""Compiled decoder layers; that a lean step is a plain one is tested for every family."""

import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.utils import counters

from xmem_utils.personas.dataset import to_views
from xmem_utils.train import Objective, Outputs, Step, fresh, nll, train
from xmem_utils.vlm import lean
from xmem_utils.vlm.batches import encode


def states_and_names(images: Outputs, texts: Outputs) -> torch.Tensor:
    """A loss that takes the names, and hidden states of some layer."""
    return nll(images) + nll(texts) + images.states.square().mean()


def trained(vlm, five):
    """By step, on batches of several sizes and lengths: losses, and graphs compiled so far; and the trained weights."""
    losses, graphs, views = [], [], {m: encode(vlm, to_views(five, "train", m)) for m in ("image", "text")}
    steps = [Step({"images": views["image"][:n], "texts": views["text"][-n:]}, 1e-3) for n in (12, 20, 7, 20)]
    objective = Objective((states_and_names,), depth=0.5)

    def on_step(model, step, count, loss):
        losses.append(loss)
        graphs.append(counters["stats"]["unique_graphs"])

    model = train(vlm, fresh(vlm, 4, 0), steps, objective, on_step)
    weights = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    model.unload()
    return losses, graphs, weights


def test_compiled_layers_train_as_plain_ones(vlm, five, monkeypatch):
    counters.clear()
    losses, graphs, weights = trained(vlm, five)
    assert graphs[-1] == 0, "nothing is compiled unless it is asked for"
    monkeypatch.setenv("XMEM_COMPILE", "1")
    monkeypatch.setattr(lean, "compiler", lean.compiler.__wrapped__)
    compiled_losses, graphs, compiled_weights = trained(vlm, five)
    assert graphs[0] > 0 and len(set(graphs)) == 1, "one compilation serves batches of all sizes and lengths"
    assert compiled_losses == pytest.approx(losses, rel=1e-2)
    assert (compiled_weights - weights).norm() < 0.1 * weights.norm()


def test_without_a_compiler_training_says_so_and_goes_on(tmp_path):
    environment = {**os.environ, "XMEM_COMPILE": "1", "CXX": "none", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    code = "from xmem_utils.vlm import lean; print(lean.compiler())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False" and "nothing can be compiled here" in done.stderr
