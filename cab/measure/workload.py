"""The unit of work that is measured: a forward, forward and backward, or one decoded position, on drawn inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attention_zoo.contract import Attention, AttentionCore, Pattern, State, Unsupported
from cab.measure.model import BlockStack
from cab.settings import Setting

Measurable = Attention | AttentionCore | BlockStack

LEVELS = ("op", "layer", "model")
PHASES = ("inference", "training_forward", "training", "decode")
# Long enough for every kernel to be set up, short enough to cost nothing.
_TINY_LENGTH = 16


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is called: a mechanism's setting at one pattern, level, phase and shape.

    ``level`` is ``op`` (the core on q, k, v of ``[B, H, L, D]``), ``layer`` (projections too, on ``[B, L, H D]``) or
    ``model`` (blocks around layers, see :mod:`cab.measure.model`). ``phase`` is ``inference`` (no gradients recorded),
    ``training_forward`` (a forward that keeps what backward needs), ``training`` (forward and backward, gradients of
    inputs and parameters included) or ``decode`` (one more position after ``length_q``, whose state ``prefill`` left).
    ``dtype`` is torch's name.
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

    @property
    def refusal(self) -> str | None:
        """Why there is no such work: a phase that the level or the mechanism does not have."""
        pattern = Pattern(self.pattern)
        if self.level == "op" and not self.setting.has_core:
            return f"no op level: {self.setting.card.no_core_reason}"
        if self.phase != "decode":
            return None
        if not pattern.is_causal:
            return f"{pattern} attention has no order in which to decode"
        if self.compile:
            return "decoding is measured as it is, not compiled: its shapes grow with every step"
        if self.level == "model":
            return "decoding is measured at the op and layer levels: the blocks keep no state"
        if pattern not in self.setting.card.incremental:
            return f"{self.setting.card.name} has no incremental form in {pattern}: every step recomputes the prefix"
        return None

    def build(self) -> Measurable:
        """The module on its device; :class:`~attention_zoo.contract.Unsupported` where there is none."""
        if self.refusal is not None:
            raise Unsupported(self.refusal)
        torch.manual_seed(0)
        q, k, width = self.length_q + (self.phase == "decode"), self.length_kv, self.heads * self.head_dim

        def layer() -> Attention:
            return self.setting.build(width, self.heads, self.pattern, max_length=q, max_length_key=k)

        module: Measurable
        if self.level == "op":
            module = self.setting.build_core(self.heads, self.head_dim, self.pattern, max_length=q, max_length_key=k)
        else:
            module = layer() if self.level == "layer" else BlockStack(layer)
        module = module.to(self.device, getattr(torch, self.dtype))
        return module.train() if self.phase.startswith("training") else module.eval()

    def prepare(self) -> Prepared | Decoding:
        """Module and inputs, ready to be called."""
        module = self.build()
        dtype = getattr(torch, self.dtype)
        if self.phase == "decode":
            # One position more than the state will know: the one to be decoded.
            longer = self.length_q + 1
            keys = self.length_kv if Pattern(self.pattern).is_cross else longer
            assert not isinstance(module, BlockStack)
            return Decoding.after(module, draw_inputs(module, self.batch, longer, keys, self.device, dtype))
        inputs = draw_inputs(module, self.batch, self.length_q, self.length_kv, self.device, dtype)
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
    module: Measurable
    forward: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]

    def __call__(self) -> Tensor:
        """One unit of work; returns the output."""
        if self.phase == "inference":
            with torch.inference_mode():
                return self.forward(*self.inputs)
        if self.phase == "training_forward":
            return self.forward(*self.inputs)
        for tensor in self.held:
            tensor.grad = None
        out = self.forward(*self.inputs)
        out.backward(torch.ones_like(out))
        return out

    @property
    def held(self) -> list[Tensor]:
        """What exists before the call: inputs, parameters and buffers."""
        return [*self.inputs, *self.module.parameters(), *self.module.buffers()]


@dataclass(frozen=True)
class Decoding:
    """One step of a layer or a core at a given context; the state stays as it was, so that every call is the same."""

    module: Attention | AttentionCore
    state: State
    position: tuple[Tensor | None, ...]

    @classmethod
    def after(cls, module: Attention | AttentionCore, inputs: tuple[Tensor, ...]) -> Decoding:
        """The state after all but the last query, and that last position."""
        with torch.inference_mode():
            query, *source = inputs
            cross = module.pattern.is_cross
            if isinstance(module, AttentionCore):
                key, value = source if cross else (tensor[:, :, :-1] for tensor in source)
                _, state = module.prefill(query[:, :, :-1], key, value)
                last = (None, None) if cross else tuple(tensor[:, :, -1:].clone() for tensor in source)
                return cls(module, state, (query[:, :, -1:].clone(), *last))
            _, state = module.prefill(query[:, :-1], source=source[0] if cross else None)
            return cls(module, state, (query[:, -1:].clone(),))

    def __call__(self) -> Tensor:
        """One unit of work; returns the output."""
        with torch.inference_mode():
            step: Callable[..., tuple[Tensor, State]] = self.module.step
            return step(*self.position, self.state)[0]


def draw_inputs(
    module: Measurable,
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
