"""Two real processes, or several passes a step, train as one process does in one pass.

`accelerate launch` starts the processes with the shipped configs, on the CPU (gloo) and in float32: bf16 products
of differently cut batches differ in the third digit, float32 ones in the seventh.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

from xmem_utils import paths, store
from xmem_utils.memorization.experiment import Study
from xmem_utils.params import profile_named
from xmem_utils.personas.dataset import PersonaSpec, build, to_views
from xmem_utils.train import Training, memorize, shares
from xmem_utils.vlm.batches import collate, encode, model_inputs
from xmem_utils.vlm.load import load_vlm

CONFIGS = paths.REPO / "profiles" / "accelerate"
# 9 examples: the last batch of an epoch has one, so one of two processes has none
TRAINING = Training(epochs=2, batch_size=4, rank=4)
LOSS = {"rtol": 1e-5}  # seen: 1e-6
# AdamW divides a gradient by its own size, so rounding in a vanishing one moves a weight by up to the learning rate;
# seen: 2e-5 where weights are up to 0.1
WEIGHTS = {"rtol": 0, "atol": 2e-4}
PROFILE = {
    "personas": 3, "seeds": [0], "train_views": 2, "test_views": 1, "epochs": 2, "dose_views": [1], "resamples": 100,
}  # fmt: skip
TRAIN = ("train", "--source", "image", "--rank", "4", "--checkpoint", "--profile")

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
from xmem_utils import __main__ as commands
from xmem_utils.checkpoint import WholeAdapter
from xmem_utils.train import Training, memorize
from tests.test_distributed import few, load_vlm

folder, training = Path(sys.argv[1]), Training(**json.loads(sys.argv[2]))
vlm = load_vlm("xmem-tiny-s")
examples = few(vlm)
whole = []
model = memorize(vlm, examples, training, lambda model, step, loss: whole.append(loss), False)
local = [p.to_local() if isinstance(p, DTensor) else p for p in model.parameters()]
share = sum(p.numel() for p in local) / sum(p.numel() for p in model.parameters())
adapter = WholeAdapter(model)
if accelerator.is_main_process:
    adapter.save_pretrained(folder / "adapter")

def stop(model, step, loss):
    if step == 6:  # the last of two epochs; what is on disk is the first
        raise KeyboardInterrupt

try:
    memorize(load_vlm("xmem-tiny-s"), examples, training, stop, False, folder / "checkpoint", {"seen": 7})
except KeyboardInterrupt:
    pass
accelerator.wait_for_everyone()
resumed, notes = [], {}
if accelerator.is_main_process:
    (folder / "again").write_bytes((folder / "checkpoint").read_bytes())
accelerator.wait_for_everyone()
note = lambda model, step, loss: resumed.append(loss)
memorize(load_vlm("xmem-tiny-s"), examples, training, note, False, folder / "again", notes)
result = {"type": accelerator.distributed_type, "whole": whole, "resumed": resumed, "notes": notes, "share": share}
(folder / f"{accelerator.process_index}.json").write_text(json.dumps(result))
if os.environ.get("ACCELERATE_USE_FSDP"):
    sys.argv = ["xmem_utils", *json.loads(sys.argv[3])]
    commands.main()
accelerator.end_training()
"""


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
    return load_vlm("xmem-tiny-s")


@pytest.fixture(scope="module")
def examples(own):
    return few(own)


def trained(own, examples, training, **options):
    """Losses by step, and the adapter."""
    losses = []
    options = {"on_step": lambda model, step, loss: losses.append(loss), **options}
    model = memorize(own, examples, training, progress=False, **options)
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    model.unload()
    return losses, weights


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
    arguments = json.dumps(asdict(TRAINING)), json.dumps([*TRAIN, str(folder / "few.yaml")])
    launch(folder, request.param, str(folder / "worker.py"), str(folder), *arguments)
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
    losses, weights = trained(own, examples, TRAINING, checkpoint=tmp_path / "checkpoint")
    np.testing.assert_allclose(losses, alone[0][3:], **LOSS)
    for name, value in alone[1].items():
        torch.testing.assert_close(weights[name], value, **WEIGHTS)


def test_an_interrupted_training_ends_with_the_same_weights(alone, own, examples, tmp_path):
    def stop(model, step, loss):
        if step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        memorize(own, examples, TRAINING, stop, progress=False, checkpoint=tmp_path / "c")
    losses, weights = trained(own, examples, TRAINING, checkpoint=tmp_path / "c")
    assert losses == alone[0][3:]
    for name, value in alone[1].items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=0)
    assert trained(own, examples, TRAINING, checkpoint=tmp_path / "c")[0] == [], "it is finished"
    with pytest.raises(ValueError, match="is of another training: batch_size is 4 there and 5 here"):
        trained(own, examples, Training(epochs=2, batch_size=5, rank=4), checkpoint=tmp_path / "c")
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:5000])
    with pytest.raises(ValueError, match="is damaged"):
        trained(own, examples, TRAINING, checkpoint=tmp_path / "c")
    assert not any("lora" in name for name, _ in own.model.named_parameters())


@pytest.mark.parametrize("accumulation", [2, 4])
def test_several_passes_a_step_have_the_losses_of_one(alone, own, examples, accumulation):
    losses, weights = trained(own, examples, Training(**{**asdict(TRAINING), "accumulation": accumulation}))
    np.testing.assert_allclose(losses, alone[0], **LOSS)
    for name, value in alone[1].items():
        torch.testing.assert_close(weights[name], value, **WEIGHTS)


def test_gradient_checkpointing_changes_memory_alone(alone, own, examples):
    kept, losses = [], []

    def watch(model, step, loss):
        losses.append(loss)
        kept.append(own.model.is_gradient_checkpointing)

    training = Training(**{**asdict(TRAINING), "gradient_checkpointing": True})
    _, weights = trained(own, examples, training, on_step=watch)
    np.testing.assert_allclose(losses, alone[0], **LOSS)
    for name, value in alone[1].items():
        torch.testing.assert_close(weights[name], value, **WEIGHTS)
    assert set(kept) == {True} and not own.model.is_gradient_checkpointing


def test_a_batch_that_does_not_divide_is_said_and_counted_exactly(alone, own, examples):
    with pytest.warns(UserWarning, match="a batch of 4 does not divide into 1 processes x 3 passes"):
        losses, _ = trained(own, examples, Training(**{**asdict(TRAINING), "accumulation": 3}))
    np.testing.assert_allclose(losses, alone[0], **LOSS)


def test_every_example_is_in_exactly_one_part():
    for n in range(1, 14):
        for processes in (1, 2, 3, 8):
            for accumulation in (1, 2, 5):
                parts = shares(list(range(n)), processes, accumulation)
                assert sorted(i for passes in parts for part in passes for i in part) == list(range(n))
                assert all(len(passes) == processes for passes in parts), "all go into every pass"
                assert processes > 1 or all(part for passes in parts for part in passes), "nobody waits alone"
                assert len(parts) <= accumulation
                sizes = [len(part) for passes in parts for part in passes]
                assert max(sizes) - min(sizes) <= 1


def records_of(folder):
    """The one run that a store holds, whole."""
    table = store.listing(verify=True, root=folder / "data" / "runs")
    assert table["state"].tolist() == ["whole"]
    left = {f.name for f in (folder / "data" / "runs").glob(".*")}
    assert not any("checkpoint" in name or "partial" in name for name in left)
    return pd.read_parquet(folder / "data" / "runs" / table["run"][0] / "records.parquet"), table["run"][0]


@pytest.fixture(scope="module")
def stored_alone(own, tmp_path_factory):
    """The run that `train` makes, made by a study in this process."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "few.yaml").write_text(yaml.safe_dump(PROFILE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "no")
        patch.setattr(paths, "RUNS", folder / "data" / "runs")
        study = Study(own, profile_named(str(folder / "few.yaml")), 4, 2e-3, checkpoint=True)
        return study.run(study.condition("image", 0))


@pytest.mark.parametrize("two", ["fsdp.yaml"], indirect=True)
def test_sharded_processes_store_one_run_that_notebooks_find(two, stored_alone):
    records, slug = records_of(two[0])
    assert slug == stored_alone.condition.slug
    np.testing.assert_allclose(records["logprob"], stored_alone.records["logprob"], rtol=1e-3)


def test_train_under_accelerate_launch_stores_one_run_that_notebooks_find(stored_alone, tmp_path):
    (tmp_path / "few.yaml").write_text(yaml.safe_dump(PROFILE))
    said = launch(tmp_path, "several_gpus.yaml", "-m", "xmem_utils", *TRAIN, str(tmp_path / "few.yaml"))
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
