"""The plan counts what there is, and its estimates are near what is measured."""

import json
import sys

import pytest
import torch
from torch import nn

from xmem_utils import cli as commands
from xmem_utils import paths
from xmem_utils.params import PROFILES
from xmem_utils.personas.dataset import to_views
from xmem_utils.plan import activation_bytes, config_of, on_meta, plan, sequence_length
from xmem_utils.train import Resources, Training, memorize
from xmem_utils.vlm.adapters import adapt
from xmem_utils.vlm.batches import collate, encode
from xmem_utils.vlm.forward import forward
from xmem_utils.vlm.load import load_vlm
from xmem_utils.vlm.precision import mixed_precision

GEMMA = paths.REPO / "docs" / "configs" / "gemma-3-4b.json"


@pytest.fixture(scope="module")
def tiny():
    return plan(config_of("xmem-tiny-s-11"), PROFILES["quick"], Training(rank=8))


def test_parameters_and_their_bytes_are_those_of_the_loaded_model(vlm, tiny):
    assert tiny.parameters == sum(p.numel() for p in vlm.model.parameters())
    assert tiny.memory["weights, bfloat16"] == 2 * tiny.parameters, "as stored"


def test_lora_gradients_and_moments_are_those_of_a_training(five, tiny):
    own = load_vlm("xmem-tiny-s-11")
    seen = {}

    def look(model, step, steps, loss):
        trained = [p for p in model.parameters() if p.requires_grad]
        seen["count"], seen["bytes"] = sum(p.numel() for p in trained), sum(p.nbytes for p in trained)

    memorize(own, encode(own, to_views(five, "train", "text")[:4]), Training(epochs=1, rank=8), look)
    assert tiny.lora_parameters == seen["count"]
    assert tiny.memory["LoRA and its gradients"] == tiny.memory["optimizer"] == 2 * seen["bytes"]


def kept_for_backward(model: nn.Module, batch: dict[str, torch.Tensor], keep: int) -> int:
    """Bytes that a forward pass in mixed precision really keeps, the parameters left out."""
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        mixed_precision(torch.device("cpu"), True),
    ):
        forward(model, batch, keep)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_are_near_what_autograd_keeps(five, checkpointing):
    own = load_vlm("xmem-tiny-s-11")
    own.model.to(torch.bfloat16)  # as the weights of real models are
    model = adapt(own.model, 8).train()
    batch = collate(encode(own, to_views(five, "train", "image")), own.processor.tokenizer.pad_token_id, side="left")
    if checkpointing:
        own.model.gradient_checkpointing_enable({"use_reentrant": False})
    keep = int((batch["labels"] != -100).sum(1).max())
    measured = kept_for_backward(model, batch, keep)
    config = config_of("xmem-tiny-s-11")
    estimated = activation_bytes(config, on_meta(config), batch["input_ids"].numel(), checkpointing)
    if checkpointing:  # the estimate has one layer's own activations too, which live in the backward pass alone
        layers = config.get_text_config().num_hidden_layers
        everything = activation_bytes(config, on_meta(config), batch["input_ids"].numel(), False)
        estimated -= everything // layers
    assert estimated == pytest.approx(measured, rel=0.15 if not checkpointing else 0.5)


def test_gemma_3_4b_has_its_published_size():
    config, sparing = config_of(str(GEMMA)), Training(resources=Resources(4, gradient_checkpointing=True))
    made = plan(config, PROFILES["standard"], sparing, tflops=50)
    assert made.parameters == pytest.approx(4.3e9, rel=0.01)
    assert made.memory["weights, bfloat16"] == 2 * made.parameters
    assert made.sequence_tokens == 256 + 64 == sequence_length(config)
    assert made.steps == 2 * 25
    plain = plan(config, PROFILES["standard"], Training(resources=Resources(4)), tflops=50)
    assert made.memory["activations (estimate)"] < plain.memory["activations (estimate)"] / 5
    assert made.memory_bytes == sum(made.memory.values())
    assert made.seconds == pytest.approx(made.flops / 50e12) and made.flops > plain.flops


def test_plan_prints_a_table_or_json(monkeypatch, capsys):
    for extra in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["xmem_utils", "plan", "--model", "xmem-tiny-s-11", *extra])
        commands.main()
    table, _, rest = capsys.readouterr().out.partition("{")
    assert "parameters               1,902,016" in table and "give --tflops or --measure" in table
    assert json.loads("{" + rest)["parameters"] == 1_902_016
