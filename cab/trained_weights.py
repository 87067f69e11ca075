"""Trained weights with another attention around them: what a drop-in run begins from.

The *source* of a drop-in run is the same run with exact attention (``dropin=softmax``), trained as its task says. Its
weights are kept beside the records, made by whoever needs them first.

    <results>/<protocol>/<hardware>/weights/<run key of the source>.pt
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from attention_zoo.contract import ProjectedAttention, Unsupported
from attention_zoo.eligibility import PROJECTIONS, left_out
from cab.cells import Cell
from cab.claims import claimed
from tasks.whole_file import whole_file

Weights = Mapping[str, Tensor]


def weights_of(source: Cell, train: Callable[[Cell], nn.Module], say: Callable[[str], None]) -> Weights:
    """The trained parameters and buffers of ``source``; ``train`` makes them where they are not kept yet."""
    path = source.store.folder / "weights" / f"{source.key}.pt"
    name = f"{source.task_setting} {source.setting.name} seed {source.config.seed}"
    with claimed(path.parent, source.key, lambda: say(f"another process trains {name}; waiting")):
        if not path.exists():
            say(f"training {name}, whose weights are taken over")
            model = train(source)
            with whole_file(path) as partial:
                torch.save(model.state_dict(), partial)
    return _read(path)


def _read(path: Path) -> Weights:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}); remove it, and it is trained again"
        ) from error
    assert isinstance(found, dict)
    return found


def take_over(model: nn.Module, weights: Weights, source: str) -> None:
    """Puts trained weights into a model that differs in its attention alone.

    Raises:
        Unsupported: a trained parameter has no place in the model, or one of its own has no trained value.
    """
    own = {name for name, _ in model.named_parameters()}
    held, needless = model.state_dict(), _needless(model)
    lost = sorted(name for name in weights if name not in held and not name.startswith(needless))
    if missing := sorted(own - weights.keys()):
        raise Unsupported(f"trained with {source}, the model has no values for {_some(missing)}")
    if lost:
        raise Unsupported(f"{_some(lost)} of the model trained with {source} would have no place")
    kept = {name: value for name, value in weights.items() if name in held}
    if other := sorted(name for name, value in kept.items() if held[name].shape != value.shape):
        raise Unsupported(f"{_some(other)} of the model trained with {source} have another shape here")
    model.load_state_dict(kept, strict=False)


def _needless(model: nn.Module) -> tuple[str, ...]:
    """How names of weights begin that floors can do without: they look at neither queries nor keys."""
    return tuple(
        f"{name}.{part}_projection."
        for name, layer in model.named_modules()
        if isinstance(layer, ProjectedAttention) and not left_out(layer)
        for part in PROJECTIONS
        if part not in layer.projections
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
