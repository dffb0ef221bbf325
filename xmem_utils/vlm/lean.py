"""The same training step with fewer operations: for small models, whose time goes into many small ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional as F

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


def _merging(layer: Linear) -> Callable[[Tensor], Tensor]:
    """A LoRA layer's forward with one product, by `W + s * B A`; the frozen `W` is cast once."""
    plain, base, kept = layer.forward, layer.get_base_layer(), {}
    down, up, scale = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"]

    def forward(x: Tensor, *args: object, **kwargs: object) -> Tensor:
        if not layer.training or layer.disable_adapters or layer.merged:
            return plain(x, *args, **kwargs)
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else base.weight.dtype
        if dtype not in kept:
            kept[dtype] = base.weight.detach().to(dtype)
        with torch.autocast(kind, enabled=False):
            weight = torch.addmm(kept[dtype], up.weight.to(dtype), down.weight.to(dtype), alpha=scale)
            bias = None if base.bias is None else base.bias.to(dtype)
            return F.linear(x.to(dtype), weight, bias)

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


@contextlib.contextmanager
def lean(model: nn.Module) -> Iterator[None]:
    """Loss and gradients of `model` as without, to rounding, with fewer operations, for as long as the context is.

    Small LoRA layers multiply once, by merged weights; norms are one operation. What does not look as expected, has
    dropout or is shared out over processes keeps its own forward. The base weights must not change inside, except in
    eval mode.
    """
    changed: list[nn.Module] = []
    try:
        with torch.no_grad():
            for module in model.modules():
                forward = None
                if type(module) is Linear:
                    weight = module.get_base_layer().weight
                    whole = type(weight.data) is Tensor and not weight.requires_grad and max(weight.shape) <= SMALL
                    usual = list(module.lora_A) == ["default"] and not module.use_dora.get("default")
                    if whole and usual and isinstance(module.lora_dropout["default"], nn.Identity):
                        forward = _merging(module)
                elif type(getattr(module, "weight", None)) is nn.Parameter:
                    forward = _norm(module)
                if forward:
                    module.forward = forward
                    changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward
