"""The unit of work that is measured: one forward (and backward) of a layer or a core on drawn inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attention_zoo.contract import Attention, AttentionCore, Pattern
from cab.settings import Setting

LEVELS = ("op", "layer")
PHASES = ("inference", "training_forward", "training")
# Long enough for every kernel to be set up, short enough to cost nothing.
_TINY_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is called: a mechanism's setting at one pattern, level, phase and shape.

    ``level`` is ``op`` (the core on q, k, v of ``[B, H, L, D]``) or ``layer`` (projections too, on ``[B, L, H D]``).
    ``phase`` is ``inference`` (no gradients recorded), ``training_forward`` (a forward that keeps what backward needs)
    or ``training`` (forward and backward, gradients of inputs and parameters included). ``dtype`` is torch's name.
    """

    setting: Setting
    pattern: str
    level: str
    phase: str
    length_q: int
    length_kv: int
    batch: int
    heads: int
    head_dim: int
    dtype: str = "float32"
    device: str = "cpu"
    compile: bool = False

    def build(self) -> Attention | AttentionCore:
        """The module on its device; :class:`~attention_zoo.contract.Unsupported` where there is none."""
        torch.manual_seed(0)
        q, k, heads = self.length_q, self.length_kv, self.heads
        module: Attention | AttentionCore
        if self.level == "op":
            module = self.setting.build_core(heads, self.head_dim, self.pattern, max_length=q, max_length_key=k)
        else:
            width = heads * self.head_dim
            module = self.setting.build(width, heads, self.pattern, max_length=q, max_length_key=k)
        module = module.to(self.device, getattr(torch, self.dtype))
        return module.eval() if self.phase == "inference" else module.train()

    def prepare(self) -> Prepared:
        """Module and inputs, ready to be called."""
        module = self.build()
        inputs = draw_inputs(module, self.batch, self.length_q, self.length_kv, self.device, getattr(torch, self.dtype))
        if self.phase != "inference":
            # Each once: key and value of a layer are one tensor.
            for tensor in {id(tensor): tensor for tensor in inputs}.values():
                tensor.requires_grad_()
        forward = torch.compile(module) if self.compile else module
        return Prepared(self.phase, module, forward, inputs)

    def tiny(self) -> Workload:
        """The same work at a length that costs nothing, to set up what is set up once."""
        return replace(self, length_q=min(self.length_q, _TINY_LENGTH), length_kv=min(self.length_kv, _TINY_LENGTH))


@dataclass(frozen=True)
class Prepared:
    """A module with its inputs."""

    phase: str
    module: Attention | AttentionCore
    forward: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]

    def __call__(self) -> Any:
        """One unit of work."""
        if self.phase == "inference":
            with torch.inference_mode():
                return self.forward(*self.inputs)
        if self.phase == "training_forward":
            return self.forward(*self.inputs)
        for tensor in self.held:
            tensor.grad = None
        out = self.forward(*self.inputs)
        out.backward(torch.ones_like(out))
        return None

    @property
    def held(self) -> list[Tensor]:
        """What exists before the call: inputs, parameters and buffers."""
        return [*self.inputs, *self.module.parameters(), *self.module.buffers()]


def draw_inputs(
    module: Attention | AttentionCore,
    batch: int,
    length_q: int,
    length_kv: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    """Standard normal inputs of a core (q, k, v) or of a layer (x, or query, key, value), from a seeded generator."""
    cross = Pattern(module.pattern).is_cross
    shapes: list[tuple[int, ...]]
    if isinstance(module, AttentionCore):
        query, key = ((batch, module.num_heads, length, module.head_dim) for length in (length_q, length_kv))
        shapes = [query, key, key]
    else:
        shapes = [(batch, length_q, module.embed_dim), *([(batch, length_kv, module.embed_dim)] if cross else [])]
    if device == "meta":
        drawn = [torch.empty(shape, dtype=dtype, device=device) for shape in shapes]
    else:
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    # The source of a layer is both key and value.
    return (*drawn, drawn[1]) if len(drawn) == 2 else tuple(drawn)
