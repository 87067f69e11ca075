"""Peak memory of a call from allocator events: extra bytes over what exists before it, its outputs included.

With d_1, d_2, ... the signed sizes of the call's allocations and releases in the order of time, the peak is
max_k sum_{i <= k} d_i. On the CPU the events are those that torch's profiler takes from the allocator: every tensor and
every scratch that a kernel asks torch for, in the backward thread too; not what a BLAS library allocates for
itself. On CUDA it is the peak of the caching allocator, in its blocks of 512 bytes.

Inputs, parameters and buffers exist before the call and do not count; gradients that the call makes do. A pass
that traces memory is never timed.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.autograd.profiler import profile

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_bytes(text: str) -> int:
    """``2GiB``, ``500 MB`` or ``1048576`` as a number of bytes."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([A-Za-z]*)\s*", text)
    if match and match[2].upper() in _UNITS:
        try:
            size = int(float(match[1]) * _UNITS[match[2].upper()])
        except ValueError:
            size = 0
        if size > 0:
            return size
    raise ValueError(f"{text!r} is not a size: a number with a unit of B, KB, MB, GB, KiB, MiB or GiB, such as 2GiB")


def peak_extra_bytes(
    call: Callable[[], object], device: str = "cpu", *, warm: Callable[[], object] | None = None
) -> int:
    """The largest sum of live bytes that ``call`` adds.

    Args:
        warm: called first and not counted: the same work on a tiny input, so that what libraries set up once is out.
    """
    if warm is not None:
        warm()
    gc.collect()  # memory that dies during the call without having been born in it would be subtracted
    return _cuda_peak(call, device) if device.startswith("cuda") else _cpu_peak(call)


def _cpu_peak(call: Callable[[], object]) -> int:
    with profile(use_kineto=True, profile_memory=True) as traced:
        result = call()
    events = [e for e in traced.kineto_results.events() if e.name() == "[memory]"]
    del result
    running = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        running += event.nbytes()
        peak = max(peak, running)
    return peak


def _cuda_peak(call: Callable[[], object], device: str) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    del result
    return torch.cuda.max_memory_allocated(device) - before


def saved_bytes(forward: Callable[[], object], held: Iterable[Tensor]) -> int:
    """Bytes that a forward pass with gradients keeps for its backward, each storage once.

    ``held`` are inputs and parameters, which exist anyway and do not count. What a custom autograd function keeps in
    plain attributes is not seen, only what it saves as torch documents.
    """
    ours = {tensor.untyped_storage().data_ptr() for tensor in held}
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        result = forward()
    # All saved tensors are alive until the graph is, so that no address has been used twice.
    del result
    return sum(size for address, size in storages.items() if address not in ours)
