"""Where and in which precision a run computes: resolves ``device``, ``dtype`` and ``threads``."""

from __future__ import annotations

import torch

from cab.errors import UserError, unknown
from cab.measure.environment import usable_cores

DEVICES = ("auto", "cpu", "cuda")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def resolve_device(name: str) -> str:
    """``cpu`` or ``cuda``; ``auto`` is cuda where there is one."""
    if name not in DEVICES:
        raise unknown("device", name, DEVICES)
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device 'cuda' is not there: torch sees no CUDA device; allowed here: auto, cpu")
    return name


def resolve_devices(count: int, device: str) -> int:
    """How many devices train together; on the CPU they are processes, which share its cores."""
    there = torch.cuda.device_count() if device == "cuda" else usable_cores()
    if not 1 <= count <= there:
        raise UserError(f"devices={count} is not allowed: 1 to {there} on this machine's {device}")
    return count


def resolve_dtype(name: str, *, training: bool = False) -> torch.dtype:
    """The dtype of a name; training takes no float16, which would need loss scaling."""
    allowed = [key for key in DTYPES if not (training and key == "float16")]
    if name not in allowed:
        raise unknown("dtype", name, allowed)
    return DTYPES[name]


def resolve_threads(threads: int | None) -> int:
    """Sets and returns torch's number of CPU threads; None keeps torch's own choice."""
    if threads is not None:
        if threads < 1:
            raise UserError(f"threads={threads} is not a positive number")
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
    return torch.get_num_threads()
