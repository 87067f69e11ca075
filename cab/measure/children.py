"""What runs in a child process (see :mod:`cab.measure.isolate`): functions of plain arguments with plain results."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from cab.measure.flops import analytic_flops, dense_equivalent_flops, parameter_count
from cab.measure.memory import peak_extra_bytes, saved_bytes
from cab.measure.timing import PairedTimes, clock_of, paired_times
from cab.measure.workload import Decoding, Workload


class NonFinite(FloatingPointError):
    """An output that holds infinities or no numbers: nothing that it costs counts."""


def time_pair(
    mechanism: Workload,
    baseline: Workload,
    min_time_s: float,
    warmup_time_s: float,
    min_pairs: int,
    warmup_pairs: int,
) -> PairedTimes:
    """Both built here, then timed in turns; :class:`NonFinite` where the mechanism's first output is not finite."""
    watched = _FirstOutput(mechanism.prepare())
    return paired_times(
        watched,
        baseline.prepare(),
        clock_of(mechanism.device),
        min_time_s=min_time_s,
        warmup_time_s=warmup_time_s,
        min_pairs=min_pairs,
        warmup_pairs=warmup_pairs,
        after_first=watched.check,
    )


class _FirstOutput:
    """Passes calls on, and keeps the output of the first until it is checked, outside all timed calls."""

    def __init__(self, call: Callable[[], Tensor]) -> None:
        self._call = call
        self._first: Tensor | None = None
        self._wanted = True

    def __call__(self) -> Tensor:
        out = self._call()
        if self._wanted:
            self._first, self._wanted = out, False
        return out

    def check(self) -> None:
        assert self._first is not None
        finite = torch.isfinite(self._first.detach())
        if not bool(finite.all()):
            share = float((~finite).double().mean())
            raise NonFinite(f"{math.ceil(100 * share)} % of the output is not finite")
        self._first = None


def trace_memory(workload: Workload) -> dict[str, float]:
    """``peak_extra_bytes``; when training also ``saved_bytes`` in a pass of its own, when decoding ``state_bytes``."""
    tiny = workload.tiny().prepare()
    prepared = workload.prepare()
    traced: dict[str, float] = {}
    if isinstance(prepared, Decoding):
        traced["state_bytes"] = float(prepared.state.nbytes)
    elif workload.phase != "inference":
        traced["saved_bytes"] = saved_bytes(lambda: prepared.forward(*prepared.inputs), prepared.held)
    traced["peak_extra_bytes"] = peak_extra_bytes(prepared, workload.device, warm=tiny)
    return traced


def count_work(workload: Workload) -> dict[str, float]:
    """Of one forward pass: ``flops`` by the mechanism's formula, and ``dense_equivalent_flops``; and ``parameters``.

    Decoding has no formula of its own: its work is not counted.
    """
    module = replace(workload, device="cpu").build()
    counted: dict[str, float] = {}
    if workload.phase != "decode":
        shape = (workload.batch, workload.length_q, workload.length_kv)
        flops = analytic_flops(module, *shape)
        counted = {} if flops is None else {"flops": float(flops)}
        dense = dense_equivalent_flops(workload.level, *shape, workload.heads, workload.head_dim)
        counted["dense_equivalent_flops"] = float(dense)
    return {**counted, "parameters": float(parameter_count(module))}


def memory_and_work(workload: Workload) -> dict[str, float]:
    """:func:`trace_memory` and :func:`count_work` in one child."""
    return {**trace_memory(workload), **count_work(workload)}
