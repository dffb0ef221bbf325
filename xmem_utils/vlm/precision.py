"""bf16 on the CPU where it pays: matrix products in bf16, attention in float32.

On CPUs with AVX-512 bf16 a bf16 matrix product runs about four times as fast as a float32 one, but the
backward pass of bf16 scaled-dot-product attention is several times slower than the float32 one.
"""

from __future__ import annotations

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SDPA_FLOAT32 = "sdpa_float32"
LARGE = 50_000_000  # parameters; in float32, evaluation of a larger model takes longer than its training


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """No autocast; entered only where there is one, as code that changes it is compiled anew in every process."""
    kind = device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext()


def _sdpa_float32(module, query, key, value, attention_mask, **kwargs):
    dtype = query.dtype
    with no_autocast(query.device):
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
        output, weights = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **kwargs
        )
    return output.to(dtype), weights


AttentionInterface.register(SDPA_FLOAT32, _sdpa_float32)
AttentionMaskInterface.register(SDPA_FLOAT32, sdpa_mask)


def bf16_pays(device: torch.device) -> bool:
    """Whether this device multiplies bf16 matrices natively."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def kept_in(device: torch.device, parameters: int) -> torch.dtype:
    """What weights are kept in: bf16 on a GPU, and on a CPU that multiplies it natively where a model is large."""
    large = device.type == "cpu" and parameters > LARGE and bf16_pays(device)
    return torch.bfloat16 if large or device.type == "cuda" else torch.float32


def rounding(dtype: torch.dtype) -> float:
    """How far two ways to compute a score may be apart, absolutely and in proportion to it."""
    return torch.finfo(dtype).eps ** 0.5


class _Float32(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return args[0].to(torch.float32, copy=True) if func is torch.Tensor.bfloat16 else func(*args, **(kwargs or {}))


def bf16_where_it_pays(device: torch.device) -> contextlib.AbstractContextManager:
    """Code that asks for bf16 whatever the device, as torch's Muon does, gets float32 where that is faster: torch has
    no fast product of bf16 matrices for CPUs without AVX-512 bf16."""
    return contextlib.nullcontext() if bf16_pays(device) else _Float32()


def mixed_precision(device: torch.device, enabled: bool) -> contextlib.AbstractContextManager:
    """bf16 autocast on `device`, or nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if enabled else contextlib.nullcontext()
