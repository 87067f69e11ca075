"""What a run cost: speed of its training, memory of a step, parameters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch

from cab import device as devices
from cab.cells import Cell
from cab.measure.memory import peak_extra_bytes
from cab.run_training import fabric_of
from cab.train import Learner, Progress

_Figure = tuple[str, float, str, bool]


def cost_rows(cell: Cell, model: torch.nn.Module, progress: Progress) -> list[dict[str, Any]]:
    """Rows, without the columns that all rows of the run share."""
    trained = cell.recipe.max_steps > 0
    return [
        {
            "metric": name,
            "value": float(value),
            "unit": unit,
            "higher_is_better": better,
            "phase": "train" if trained else "inference",
        }
        for name, value, unit, better in (
            *(_of_training(cell, model, progress) if trained else _of_inference(cell, model)),
            ("parameters", sum(parameter.numel() for parameter in model.parameters()), "parameters", False),
        )
    ]


def _of_training(cell: Cell, model: torch.nn.Module, progress: Progress) -> Iterator[_Figure]:
    yield "steps_per_s", progress.step / progress.seconds, "steps/s", True
    yield "tokens_per_s", progress.tokens / progress.seconds, "tokens/s", True
    yield "train_time_s", progress.seconds, "s", False
    if cell.config.devices == 1:  # where several train together, one alone does not hold what they exchange
        yield "peak_extra_bytes", _step_memory(cell, model), "B", False


def _of_inference(cell: Cell, model: torch.nn.Module) -> Iterator[_Figure]:
    """Of a run without a step, which has no training."""
    yield "peak_extra_bytes", _forward_memory(cell, model), "B", False


def _step_memory(cell: Cell, model: torch.nn.Module) -> int:
    """Peak extra bytes of one update (forward, backward, optimiser) over model, optimiser state and batches."""
    dtype = devices.resolve_dtype(cell.config.dtype, training=True)
    learner = Learner(cell.task, model, cell.recipe, fabric_of(cell.device, dtype))
    drawn = itertools.islice(cell.task.batches("train", cell.config.seed), cell.recipe.accumulate)
    batches = [learner.fabric.to_device(dict(batch)) for batch in drawn]
    model.train()
    learner.update(batches)
    # Gradients of the first update would be freed inside the measured one, and be subtracted from its peak.
    learner.optimizer.zero_grad(set_to_none=True)

    def update() -> None:
        learner.update(batches)

    return peak_extra_bytes(update, device=cell.device)


def _forward_memory(cell: Cell, model: torch.nn.Module) -> int:
    """Peak extra bytes of the loss of a training batch over model and batch, no gradient recorded."""
    drawn = next(cell.task.batches("train", cell.config.seed))
    batch = {name: tensor.to(cell.device) for name, tensor in drawn.items()}
    model.eval()

    def forward() -> None:
        with torch.inference_mode():
            cell.task.loss(model, batch)

    return peak_extra_bytes(forward, device=cell.device, warm=forward)
