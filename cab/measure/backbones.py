"""What the backbones of tasks are: parameters, and the work and memory of one training step on one sample.

Each is built at a size with exact attention in every slot, and trained one step on a blank batch of one row, in a
process of its own; nothing is fetched. FLOPs are counted while the step runs, forward and backward, 2 per multiply-add
of matrix products and convolutions, without causal credit; the fused attention kernel by its formula (its backward is
2.5 times its forward: five products for two).

    python -m cab.measure.backbones results/reference/backbones [size ...]
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo.contract import Pattern
from cab.compose import Composer
from cab.measure.isolate import IsolatedRunner
from cab.measure.kept import place_of
from cab.measure.memory import peak_extra_bytes
from cab.measure.progress import Progress
from cab.settings import Setting
from cab.slots import fill
from cab.task_settings import make_task, task_card

SIZES = ("paper",)
TIME_LIMIT_S = 900.0
EXACT = Setting("sdpa", "attention_zoo.sdpa.SDPAAttention")

_FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True)
class Row:
    """One backbone; without numbers where its step failed, and why."""

    task: str
    size: str
    status: str
    parameters: int | None = None
    length_q: int | None = None
    length_kv: int | None = None
    step_flops: int | None = None
    step_peak_extra_bytes: int | None = None
    loss: float | None = None
    reason: str = ""


def _forward(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    """4 B H Lq Lk D of the two products."""
    batch, heads, length_q, width = query
    return 2 * batch * heads * length_q * key[2] * (width + value[3])


def _backward(
    gradient: Sequence[int], query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """The weights again, and the gradients of values, weights, queries and keys."""
    return 5 * _forward(query, key, value) // 2


def step(name: str, target: str, options: dict[str, Any]) -> dict[str, Any]:
    """Runs in a child: one step at batch 1."""
    from cab.train import Learner

    task = make_task(name, target, options)
    torch.manual_seed(0)
    model = task.build_model(fill(EXACT, EXACT, task.pattern, seed=0)).train()
    learner = Learner(task, model, task.recipe)
    batch = task.blank_batch(1)
    counter = FlopCounterMode(display=False, custom_mapping={_FUSED: _forward, _FUSED_BACKWARD: _backward})
    with counter:
        loss = learner.update([batch])
    learner.optimizer.zero_grad(set_to_none=True)
    peak = peak_extra_bytes(lambda: learner.update([batch]))
    target_length, source_length = task.lengths
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "length_q": target_length,
        "length_kv": source_length or target_length,
        "step_flops": counter.get_total_flops(),
        "step_peak_extra_bytes": peak,
        "loss": float(loss),
    }


def rows(sizes: Sequence[str]) -> Iterator[Row]:
    """Every task of ``conf/task`` that has the size."""
    with Composer() as composer, IsolatedRunner(preload=["cab.measure.backbones"]) as runner:
        found = {name: composer.node("task", name) for name in composer.select("task", ["all"])}
        cells = [
            (name, node, size)
            for size in sizes
            for name, node in found.items()
            if size in task_card(name, str(node["_target_"])).lengths
        ]
        progress = Progress("backbones", len(cells))
        for name, node, size in cells:
            target = str(node["_target_"])
            pattern: Pattern = task_card(name, target).primary_pattern
            given = {key: value for key, value in node.items() if key != "_target_" and "${" not in str(value)}
            outcome = runner.run(
                step, name, target, {**given, "size": size, "pattern": pattern}, time_limit=TIME_LIMIT_S
            )
            yield Row(name, size, str(outcome.status), **(outcome.value or {}), reason=outcome.reason or "")
            progress.advance()
        progress.close()


def main(folder: Path, sizes: Sequence[str]) -> None:
    """Writes ``backbones.csv`` into ``folder/<hardware>``."""
    place = place_of(folder)
    found = list(rows(sizes))
    with (place / "backbones.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in found)
    for row in found:
        count = "" if row.parameters is None else f"{row.parameters:,} parameters, {row.step_flops:.3g} FLOPs a step"
        print(f"{row.task} {row.size}: {count or f'{row.status}: {row.reason}'}")


if __name__ == "__main__":
    from cab.measure import backbones  # children find what they run by its module's name, not in __main__

    backbones.main(Path(sys.argv[1]), sys.argv[2:] or SIZES)
