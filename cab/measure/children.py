"""What runs in a child process (see :mod:`cab.measure.isolate`): functions of plain arguments with plain results."""

from __future__ import annotations

from dataclasses import replace

from cab.measure.flops import analytic_flops, parameter_count
from cab.measure.memory import peak_extra_bytes, saved_bytes
from cab.measure.timing import PairedTimes, clock_of, paired_times
from cab.measure.workload import Workload


def time_pair(
    mechanism: Workload, baseline: Workload, min_time_s: float, warmup_time_s: float, min_pairs: int
) -> PairedTimes:
    """Both built here, then timed in turns."""
    return paired_times(
        mechanism.prepare(),
        baseline.prepare(),
        clock_of(mechanism.device),
        min_time_s=min_time_s,
        warmup_time_s=warmup_time_s,
        min_pairs=min_pairs,
    )


def trace_memory(workload: Workload) -> dict[str, float]:
    """``peak_extra_bytes``; in the training phases also ``saved_bytes``, in a pass of its own."""
    tiny = workload.tiny().prepare()
    prepared = workload.prepare()
    traced: dict[str, float] = {}
    if workload.phase != "inference":
        traced["saved_bytes"] = saved_bytes(lambda: prepared.forward(*prepared.inputs), prepared.held)
    traced["peak_extra_bytes"] = peak_extra_bytes(prepared, workload.device, warm=tiny)
    return traced


def count_work(workload: Workload) -> dict[str, float]:
    """``flops`` by the mechanism's formula, of one forward pass; and ``parameters``."""
    module = replace(workload, device="cpu").build()
    flops = analytic_flops(module, workload.batch, workload.length_q, workload.length_kv)
    counted = {} if flops is None else {"flops": float(flops)}
    return {**counted, "parameters": float(parameter_count(module))}


def memory_and_work(workload: Workload) -> dict[str, float]:
    """:func:`trace_memory` and :func:`count_work` in one child."""
    return {**trace_memory(workload), **count_work(workload)}
