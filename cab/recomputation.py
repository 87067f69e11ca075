"""Activation checkpointing: a block's activations are not kept for the backward pass but computed a second time.

Memory of a training step falls from that of all blocks to that of one, for one more forward pass (T. Chen et al.,
"Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174). Gradients are the same to the bit: the second
pass sees the random state, the buffers and the extra state of the first (Performer's projection may be drawn anew in
between, a batch norm's statistics move).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from attention_zoo.contract import Attention


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The outermost members of lists of modules that hold an attention, in the model's order; each once.

    An attention outside of any list is a block of its own.
    """
    names: dict[str, None] = {}
    for name, module in model.named_modules():
        if isinstance(module, Attention):
            parts = name.split(".")
            first = next((place for place, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
            names[".".join(parts[: first + 1])] = None
    return [model.get_submodule(name) for name in names]


def recompute_activations(model: nn.Module) -> None:
    """Lets each block of ``model`` compute its activations again in the backward pass; parameters keep their names.

    A model that does so already stays as it is.
    """
    for block in blocks_of(model):
        if "forward" in vars(block):
            continue
        passes = partial(_passes, block)
        block.forward = partial(  # of this object alone; the class stays as it is
            checkpoint, block.forward, use_reentrant=False, context_fn=passes
        )


def _passes(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Around the first pass and around the second."""
    before: list[_State] = []

    @contextmanager
    def first() -> Iterator[None]:
        before.append(_State(block, copy=True))
        yield

    @contextmanager
    def second() -> Iterator[None]:
        now = _State(block, copy=False)
        before[-1].put_back()
        try:
            yield
        finally:
            now.put_back()

    return first(), second()


class _State:
    """What a forward pass may change in a block beside its output: buffers, and states outside of tensors."""

    def __init__(self, block: nn.Module, *, copy: bool) -> None:
        self._buffers: list[tuple[nn.Module, str, Tensor | None]] = []
        self._extra: list[tuple[nn.Module, Any]] = []
        for module in block.modules():
            for name, buffer in module.named_buffers(recurse=False):
                self._buffers.append((module, name, buffer.clone() if copy else buffer))
            if type(module).get_extra_state is not nn.Module.get_extra_state:
                self._extra.append((module, module.get_extra_state()))

    def put_back(self) -> None:
        for module, name, buffer in self._buffers:
            setattr(module, name, buffer)
        for module, extra in self._extra:
            module.set_extra_state(extra)
