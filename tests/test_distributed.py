"""Two real processes, or several passes a step, train as one process does in one pass.

`accelerate launch` starts the processes with the shipped configs, on the CPU (gloo) and in float32: bf16 products
of differently cut batches differ in the third digit, float32 ones in the seventh.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from xmem_utils import paths, store
from xmem_utils.experiment import summary
from xmem_utils.memorization.experiment import Memorization
from xmem_utils.params import profile_named
from xmem_utils.personas.dataset import PersonaSpec, build, to_views
from xmem_utils.train import Resources, Training, memorize, pieces
from xmem_utils.vlm.batches import Example, collate, encode, model_inputs
from xmem_utils.vlm.load import load_vlm

CONFIGS = paths.REPO / "profiles" / "accelerate"
# 9 examples: the last batch of an epoch has one, so one of two processes has none
TRAINING = Training(epochs=2, batch_size=4, rank=4)
LOSS = {"rtol": 1e-5}  # seen: 1e-6
# AdamW divides a gradient by its own size, so rounding in a vanishing one moves a weight by up to the learning rate;
# seen: 2e-5 where weights are up to 0.1
WEIGHTS = {"rtol": 0, "atol": 2e-4}
PROFILE = {
    "personas": 3, "replicates": 1, "train_views": 2, "test_views": 1, "epochs": 2, "dose_views": [1], "resamples": 100,
}  # fmt: skip
TRAIN = ("train", "02_training", "-p", "source=image", "-p", "rank=4", "--checkpoint", "-p")

# What each process runs. Accelerate shards on accelerators alone, so for FSDP its state is told that there is one;
# the sharding and all that follows is the real one.
WORKER = """
import json, os, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor
accelerator = Accelerator(cpu=True, mixed_precision="no")
if os.environ.get("ACCELERATE_USE_FSDP"):
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
from xmem_utils import cli as commands
from xmem_utils.checkpoint import adapter_writer
from xmem_utils.train import Resources, Training, memorize
from tests.test_distributed import Noted, few, load_vlm

folder, training = Path(sys.argv[1]), Training(epochs=2, batch_size=4, rank=4)
vlm = load_vlm("xmem-tiny-s-11")
examples = few(vlm)
whole = Noted()
model = memorize(vlm, examples, training, whole)
local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
share = sum(p.numel() for p in local) / sum(p.numel() for p in model.parameters())
write_adapter = adapter_writer(model)
if accelerator.is_main_process:
    write_adapter(folder / "adapter")

stop = Noted({"seen": 7}, stop=6)  # the last step of two epochs; what is on disk is the first
first = Resources(checkpoint=folder / "checkpoint", save_every=3)
try:
    memorize(load_vlm("xmem-tiny-s-11"), examples, replace(training, resources=first), stop)
except KeyboardInterrupt:
    pass
accelerator.wait_for_everyone()
if accelerator.is_main_process:
    (folder / "again").write_bytes((folder / "checkpoint").read_bytes())
accelerator.wait_for_everyone()
resumed = Noted()
again = Resources(checkpoint=folder / "again", save_every=3)
memorize(load_vlm("xmem-tiny-s-11"), examples, replace(training, resources=again), resumed)
result = {"type": accelerator.distributed_type, "whole": whole.losses, "resumed": resumed.losses,
          "notes": resumed.notes, "share": share}
(folder / f"{accelerator.process_index}.json").write_text(json.dumps(result))
if os.environ.get("ACCELERATE_USE_FSDP"):
    sys.argv = ["xmem_utils", *json.loads(sys.argv[2])]
    commands.main()
accelerator.end_training()
"""


class Noted:
    """Gathers losses, and stops after a step, if it is to."""

    def __init__(self, notes=None, stop=0):
        self.losses, self.notes, self.stop = [], notes or {}, stop

    def __call__(self, model, step, steps, loss):
        self.losses.append(loss)
        if step == self.stop:
            raise KeyboardInterrupt


def few(vlm):
    """Nine examples, a third of them with names twice as long."""
    people = build(PersonaSpec(personas=3, seed=991, train_views=3, test_views=1))
    views = to_views(people, "train", "image")
    return encode(vlm, views, answers=[v.name + " Zuzu" * (v.persona == 1) for v in views])


def launch(folder, config, *arguments):
    """Run two processes with a shipped config, on the CPU in float32."""
    settings = yaml.safe_load((CONFIGS / config).read_text())
    settings |= {"use_cpu": True, "mixed_precision": "no", "num_processes": 2}
    file = folder / config
    file.write_text(yaml.safe_dump(settings))
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE", "FSDP"))}
    environment |= {"XMEM_HOME": str(folder), "XMEM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(paths.REPO)
    # port 0: any that is free
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(file)]
    done = subprocess.run(
        [*command, "--main_process_port", "0", *arguments], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes compared with
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def float32(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")


@pytest.fixture(scope="module")
def own():
    return load_vlm("xmem-tiny-s-11")


@pytest.fixture(scope="module")
def examples(own):
    return few(own)


def trained(own, examples, training, on_step=None, **resources):
    """Losses by step, and the adapter."""
    noted = on_step or Noted()
    model = memorize(own, examples, replace(training, resources=Resources(**resources)), noted)
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    model.unload()
    return getattr(noted, "losses", None), weights


@pytest.fixture(scope="module")
def alone(own, examples):
    """One process, one pass a step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        return trained(own, examples, TRAINING)


@pytest.fixture(scope="module", params=["several_gpus.yaml", "fsdp.yaml"])
def two(request, tmp_path_factory):
    """What two processes made of the same work: their folder, and what each saw."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "worker.py").write_text(WORKER)
    (folder / "few.yaml").write_text(yaml.safe_dump(PROFILE))
    arguments = json.dumps([*TRAIN, f"profile={folder / 'few.yaml'}"])
    launch(folder, request.param, str(folder / "worker.py"), str(folder), arguments)
    return folder, [json.loads((folder / f"{i}.json").read_text()) for i in range(2)]


def test_two_processes_have_the_losses_and_the_adapter_of_one(alone, two):
    folder, seen = two
    losses, weights = alone
    assert len(losses) == 6
    for process in seen:
        np.testing.assert_allclose(process["whole"], losses, **LOSS)
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert len(stored) == len(weights)
    for name, value in weights.items():
        torch.testing.assert_close(stored[name.replace(".default", "")], value, **WEIGHTS)


def test_fsdp_holds_about_half_of_the_model_in_each_process(two):
    folder, seen = two
    assert seen[0]["type"] == ("FSDP" if (folder / "fsdp.yaml").exists() else "MULTI_CPU")
    expected = 0.5 if seen[0]["type"] == "FSDP" else 1
    assert all(process["share"] == pytest.approx(expected, abs=0.1) for process in seen)


def test_what_two_processes_saved_goes_on_in_two_and_in_one(alone, two, own, examples, tmp_path):
    folder, seen = two
    for process in seen:
        np.testing.assert_allclose(process["resumed"], alone[0][3:], **LOSS)
        assert process["notes"] == {"seen": 7}
    (tmp_path / "checkpoint").write_bytes((folder / "checkpoint").read_bytes())
    losses, weights = trained(own, examples, TRAINING, checkpoint=tmp_path / "checkpoint", save_every=3)
    np.testing.assert_allclose(losses, alone[0][3:], **LOSS)
    for name, value in alone[1].items():
        torch.testing.assert_close(weights[name], value, **WEIGHTS)


def test_an_interrupted_training_ends_with_the_same_weights(alone, own, examples, tmp_path):
    saved = {"checkpoint": tmp_path / "c", "save_every": 3}
    with pytest.raises(KeyboardInterrupt):
        memorize(own, examples, replace(TRAINING, resources=Resources(**saved)), Noted(stop=6))
    losses, weights = trained(own, examples, TRAINING, **saved)
    assert losses == alone[0][3:]
    for name, value in alone[1].items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=0)
    assert trained(own, examples, TRAINING, **saved)[0] == [], "it is finished"
    with pytest.raises(ValueError, match="is of another training: batch_size is 4 there and 5 here"):
        trained(own, examples, Training(epochs=2, batch_size=5, rank=4), **saved)
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:5000])
    with pytest.raises(ValueError, match="is damaged"):
        trained(own, examples, TRAINING, **saved)
    assert not any("lora" in name for name, _ in own.model.named_parameters())


@pytest.mark.parametrize("accumulation", [2, 4])
def test_several_passes_a_step_have_the_losses_of_one(alone, own, examples, accumulation):
    losses, weights = trained(own, examples, TRAINING, accumulation=accumulation)
    np.testing.assert_allclose(losses, alone[0], **LOSS)
    for name, value in alone[1].items():
        torch.testing.assert_close(weights[name], value, **WEIGHTS)


def test_gradient_checkpointing_changes_memory_alone(alone, own, examples):
    kept, losses = [], []

    def watch(model, step, steps, loss):
        losses.append(loss)
        kept.append(own.model.is_gradient_checkpointing)

    _, weights = trained(own, examples, TRAINING, on_step=watch, gradient_checkpointing=True)
    np.testing.assert_allclose(losses, alone[0], **LOSS)
    for name, value in alone[1].items():
        torch.testing.assert_close(weights[name], value, **WEIGHTS)
    assert set(kept) == {True} and not own.model.is_gradient_checkpointing


def test_a_batch_that_does_not_divide_is_said_and_counted_exactly(alone, own, examples):
    with pytest.warns(UserWarning, match="a batch of 4 does not divide into 1 processes x 3 passes"):
        losses, _ = trained(own, examples, TRAINING, accumulation=3)
    np.testing.assert_allclose(losses, alone[0], **LOSS)


def test_every_example_counts_once_however_a_batch_is_cut():
    for n in range(1, 14):
        batch = {"names": [Example(torch.zeros(2), torch.zeros(k + 1), {}, {}) for k in range(n)]}
        tokens = sum(len(e.answer) for e in batch["names"])
        for processes in (1, 2, 3, 8):
            for accumulation in (1, 2, 5):
                passes = pieces(batch, processes, accumulation)
                own = [part["names"] for parts in passes for part in parts]
                assert all(len(parts) == processes for parts in passes), "all go into every pass"
                assert len(passes) <= accumulation and all(piece.examples for piece in own)
                assert sum(len(p.examples) / p.rows for p in own) == pytest.approx(1)
                assert sum(sum(len(e.answer) for e in p.examples) / p.tokens for p in own) == pytest.approx(1)
                sizes = {len(p.examples) for p in own}
                assert max(sizes) - min(sizes) <= 1
                assert {p.tokens for p in own} <= {tokens, tokens * len(own)}


def records_of(folder):
    """The one run that a store holds, whole."""
    runs = folder / "data" / "runs"
    table = store.listing(runs, frozenset([Memorization.code()]), summary, verify=True)
    assert table["state"].tolist() == ["whole"]
    left = {f.name for f in (runs / "memorization").glob(".*")}
    assert not any("checkpoint" in name or "partial" in name for name in left)
    (records,) = (runs / table["run"][0]).glob("records-*.parquet")
    return pd.read_parquet(records), table["run"][0].removeprefix("memorization/")


@pytest.fixture(scope="module")
def stored_alone(own, tmp_path_factory):
    """The run that `train` makes, made by a study in this process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "few.yaml").write_text(yaml.safe_dump(PROFILE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        patch.setattr(paths, "RUNS", folder / "data" / "runs")
        resources = Resources(save_every=3)
        study = Memorization(own, profile_named(str(folder / "few.yaml")), 4, 2e-3, resources=resources)
        return study.run(study.condition("image", 11))


@pytest.mark.parametrize("two", ["fsdp.yaml"], indirect=True)
def test_sharded_processes_store_one_run_that_notebooks_find(two, stored_alone):
    records, slug = records_of(two[0])
    assert slug == stored_alone.condition.slug
    np.testing.assert_allclose(records["logprob"], stored_alone.records["logprob"], rtol=1e-3)


def test_train_under_accelerate_launch_stores_one_run_that_notebooks_find(stored_alone, tmp_path):
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(PROFILE))
    said = launch(tmp_path, "several_gpus.yaml", "-m", "xmem_utils", *TRAIN, f"profile={tmp_path / 'few.yaml'}")
    assert said.count(stored_alone.condition.slug) == 1, "the main process alone reports"
    records, slug = records_of(tmp_path)
    assert slug == stored_alone.condition.slug
    np.testing.assert_allclose(records["logprob"], stored_alone.records["logprob"], rtol=1e-3)


@pytest.mark.parametrize("name", ["one_gpu", "several_gpus", "fsdp"])
def test_the_shipped_configs_are_accelerates(name):
    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.distributed_type == {"one_gpu": "NO", "several_gpus": "MULTI_GPU", "fsdp": "FSDP"}[name]
    assert config.mixed_precision == "bf16" and not config.use_cpu
    # each process passes pictures through the vision tower before it is sharded
    assert name != "fsdp" or config.fsdp_config["fsdp_cpu_ram_efficient_loading"] is False


def test_ddp_can_move_a_batch_to_a_gpu(own, examples):
    """DDP takes inputs apart to move them; the picture's features travel in a transformers class."""
    from torch.distributed.utils import _recursive_to

    inputs = model_inputs(collate(examples[:2], 0, side="left"))
    (moved,) = _recursive_to(inputs, torch.device("meta"), use_side_stream_for_tensor_copies=False)
    assert moved["input_ids"].is_meta and moved["mm_encoder_outputs"]["image"].pooler_output.is_meta
