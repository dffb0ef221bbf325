"""The same training step with fewer operations: for small models, whose time goes into many small ones."""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable, Iterator

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional as F

from xmem_utils.vlm.precision import no_autocast

SMALL = 1024  # a layer of more rows or columns spends its time in products, and merging would add one


class _Normalized(torch.autograd.Function):
    """`scale * x / rms(x)` over the last dimension as one operation; `scale`, frozen, gets no gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, scale: Tensor, eps: float) -> Tensor:
        wide = x.float()
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, scale, inverse)
        return (wide * inverse).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, scale, inverse = ctx.saved_tensors
        wide, scaled = x.float() * inverse, gradient.float() * scale
        along = torch.linalg.vecdot(scaled, wide).div_(x.shape[-1])[..., None]
        return torch.addcmul(scaled, wide, along, value=-1).mul_(inverse).to(x.dtype), None, None


def _lora(layer: Linear, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """A LoRA layer's forward in `dtype`, the frozen `W` cast once; small ones multiply once, by `W + s * B A`."""
    plain, base = layer.forward, layer.get_base_layer()
    down, up, scale = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"]
    kept, bias = base.weight.detach().to(dtype), None if base.bias is None else base.bias.detach().to(dtype)
    small = max(kept.shape) <= SMALL

    def forward(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if not layer.training or layer.disable_adapters or layer.merged:
            return plain(x, *args, **kwargs)
        with no_autocast(x.device):
            x, inner, outer = x.to(dtype), down.weight.to(dtype), up.weight.to(dtype)
            if small:
                return F.linear(x, torch.addmm(kept, outer, inner, alpha=scale), bias)
            return F.linear(x, kept, bias) + F.linear(F.linear(x, inner), scale * outer)

    return forward


def _norm(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """The forward of a root mean square norm as one operation, found out by trying; None for any other module."""
    weight = getattr(module, "weight", None)
    eps = next((getattr(module, k) for k in ("eps", "variance_epsilon") if hasattr(module, k)), None)
    if "RMSNorm" not in type(module).__name__ or weight is None or weight.requires_grad or not isinstance(eps, float):
        return None
    tried = torch.linspace(-1, 2, weight.numel(), device=weight.device)[None].to(weight.dtype)
    for scale in (weight.detach().float(), 1 + weight.detach().float()):
        if torch.allclose(module(tried), _Normalized.apply(tried, scale, eps), rtol=1e-5, atol=1e-6):
            return lambda x, scale=scale: _Normalized.apply(x, scale, eps)
    return None


def _plain_lora(module: nn.Module) -> bool:
    """Whether a module is a LoRA layer as `adapt` makes it, whole in this process."""
    if type(module) is not Linear or list(module.lora_A) != ["default"] or module.use_dora.get("default"):
        return False
    weight = module.get_base_layer().weight
    whole = type(weight.data) is Tensor and not weight.requires_grad
    return whole and isinstance(module.lora_dropout["default"], nn.Identity)


# -- compiled --------------------------------------------------------------------------------------


@functools.cache
def compiler() -> bool:
    """Whether layers are to be compiled (`XMEM_COMPILE=1`), and can be."""
    if os.environ.get("XMEM_COMPILE") != "1":
        return False
    try:
        torch.compile(torch.neg)(torch.ones(8))
    except Exception as error:  # whatever a compiler, or its absence, may raise
        why = str(error).strip().splitlines()[0]
        warnings.warn(f"XMEM_COMPILE=1, but nothing can be compiled here ({why}): training takes longer", stacklevel=2)
        return False
    return True


def _decoder_layers(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of the language model that hold nothing but LoRA layers and norms."""
    blocks = (block for each in model.modules() if type(each) is nn.ModuleList for block in each)
    return [block for block in blocks if _simple(block)]


def _simple(block: nn.Module) -> bool:
    adapted = [module for module in block.modules() if _plain_lora(module)]
    known = {id(p) for module in adapted for p in module.parameters()}
    rest = [module for module in block.modules() if any(id(p) not in known for p in module.parameters(recurse=False))]
    return bool(adapted) and all("RMSNorm" in type(module).__name__ for module in rest)


def _compiling(layer: nn.Module) -> Callable[..., object]:
    """A layer's forward, compiled where gradients are taken; one compilation serves all layers, batches and lengths."""
    from torch._dynamo import config as dynamo  # takes a second
    from torch.fx.experimental import _config as symbols

    plain = layer.forward
    compiled = torch.compile(plain, dynamic=True)

    def forward(x: Tensor, *args: object, **kwargs: object) -> object:
        if not (layer.training and torch.is_grad_enabled()) or getattr(layer, "gradient_checkpointing", False):
            return plain(x, *args, **kwargs)
        # a scale is a constant; that a batch is as large as it is long says nothing about the next
        with no_autocast(x.device), dynamo.patch(specialize_float=True), symbols.patch(use_duck_shape=False):
            return compiled(x, *args, **kwargs)

    return forward


@contextlib.contextmanager
def lean(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Loss and gradients of `model` as without, to rounding, with fewer operations, for as long as the context is.

    LoRA layers multiply in `dtype`, small ones once, by merged weights; norms are one operation. With `XMEM_COMPILE=1`,
    layers of nothing else are compiled instead. What does not look as expected, has dropout or is shared out over
    processes keeps its own forward. The base weights must not change inside, except in eval mode.
    """
    changed: list[nn.Module] = []

    def change(module: nn.Module, forward: Callable[..., object] | None) -> None:
        if forward:
            module.forward = forward
            changed.append(module)

    try:
        blocks = _decoder_layers(model) if compiler() else []
        inside = {id(module) for block in blocks for module in block.modules()}
        with torch.no_grad():
            for module in model.modules():
                if _plain_lora(module):
                    change(module, _lora(module, dtype))
                elif type(getattr(module, "weight", None)) is nn.Parameter and id(module) not in inside:
                    change(module, _norm(module))
        for block in blocks:
            change(block, _compiling(block))
        yield
    finally:
        for module in changed:
            del module.forward
