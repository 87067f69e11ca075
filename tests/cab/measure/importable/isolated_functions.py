"""Functions and attentions for the tests of isolation: a child imports them by name."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore, HeadwiseAttention, Pattern, Support, Unsupported
from attention_zoo.softmax import CARD


def add(a: int, b: int) -> int:
    return a + b


def environment() -> dict[str, int]:
    return {
        "pid": os.getpid(),
        "server": os.getppid(),
        "server_tasks": len(os.listdir(f"/proc/{os.getppid()}/task")),
        "torch_threads": torch.get_num_threads(),
    }


def large_result(size: int) -> bytes:
    return b"x" * size


def kill_self() -> None:
    print("on my way out")
    os.kill(os.getpid(), signal.SIGKILL)


def abort() -> None:
    os.write(2, b"a kernel said why\n")
    os.abort()


def leave() -> None:
    os._exit(7)


def raise_value_error() -> None:
    raise ValueError("first line\nsecond line")


def raise_memory_error() -> None:
    raise MemoryError


def refuse() -> None:
    raise Unsupported("has no such form")


def allocate(size: int) -> int:
    return torch.empty(size, dtype=torch.uint8).fill_(1).numel()


def spin() -> None:
    while True:
        pass


def sleep_and_tell(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def unpicklable() -> Any:
    return threading.Lock()


class PassOnCore(AttentionCore):
    """The values as they are: what is measured is the harness."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return v.clone()

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        return 123


class PassOn(HeadwiseAttention):
    card = replace(CARD, name="pass_on")
    core_type = PassOnCore


class NoCrossing(PassOn):
    card = replace(
        CARD,
        name="no_crossing",
        supports={Pattern.NONCAUSAL_SELF: Support.PUBLISHED},
        unsupported={p: "it has one sequence" for p in Pattern if p is not Pattern.NONCAUSAL_SELF},
    )


class KilledCore(PassOnCore):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        if q.shape[2] > 32:
            os.kill(os.getpid(), signal.SIGKILL)
        return v.clone()


class Killed(PassOn):
    card = replace(CARD, name="killed")
    core_type = KilledCore


class ScratchCore(PassOnCore):
    """64 MiB that live for a moment."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        scratch = torch.empty(64 << 20, dtype=torch.uint8)
        del scratch
        return v.clone()


class Scratch(PassOn):
    card = replace(CARD, name="scratch")
    core_type = ScratchCore


class NotANumberCore(PassOnCore):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        return v / torch.zeros_like(v[..., :1])


class NotANumber(PassOn):
    card = replace(CARD, name="not_a_number")
    core_type = NotANumberCore


class SteadyCore(PassOnCore):
    """20 milliseconds, whatever the length; asleep, so that a busy machine does not stretch them."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        time.sleep(0.02)
        return v.clone()


class Steady(PassOn):
    card = replace(CARD, name="steady")
    core_type = SteadyCore


class GrowingCore(PassOnCore):
    """As long as Steady at a length of 100, and in proportion to the length."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
        time.sleep(0.0002 * q.shape[2])
        return v.clone()


class Growing(PassOn):
    card = replace(CARD, name="growing")
    core_type = GrowingCore
