"""Memory of a forward and backward pass grows no faster than the card says, and nothing holds L x L or L x r x D.

Counted, not timed: every allocation of torch's allocator, in the backward thread and inside kernels too (as in
``cab.measure.memory``, which keeps the peak alone). One head of width 64, lengths that no block divides, with and
without padding.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import pytest
import torch
from shipped_configs import attention_settings
from torch import Tensor
from torch.autograd.profiler import profile

from attention_zoo.conformance.certify import defaults, options_exclude
from attention_zoo.contract import Pattern
from cab.settings import Setting
from cab.stats.growth import claimed_exponent, growth_exponent

WIDTH = 64
LENGTHS = (1021, 2039, 4093)  # half of it for what takes quadratic time
# r: the features, landmarks, slots or states that a head's past or source is summed up in, each of width D.
RANKS = ("num_features", "num_landmarks", "num_slots", "rank", "state_size")


SETTINGS = attention_settings()


def passing(setting: Setting, pattern: Pattern, length: int, padded: bool) -> Callable[[], None]:
    """A forward and backward pass, gradients of inputs and parameters included."""
    torch.manual_seed(0)
    layer = setting.build(WIDTH, 1, pattern, max_length=length, max_length_key=length).train()
    x = torch.randn(1, length, WIDTH, requires_grad=True)
    source = torch.randn(1, length, WIDTH, requires_grad=True) if pattern.is_cross else None
    mask = torch.arange(length)[None] >= length - length // 8 if padded else None

    def call() -> None:
        out: Tensor = layer(x, source, source, key_padding_mask=mask)
        out.sum().backward()
        for tensor in (x, source, *layer.parameters()):
            if tensor is not None:
                tensor.grad = None

    return call


@pytest.fixture(scope="module", autouse=True)
def _quick_collection() -> Iterator[None]:
    """Leaves what lives already out of the many garbage collections below."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Measured(NamedTuple):
    """Per length, the most bytes that are alive at once, and those of the largest single tensor or scratch."""

    lengths: tuple[int, ...]
    peak: list[int]
    largest: list[int]

    def exponent(self, bytes_: list[int]) -> float:
        return growth_exponent(self.lengths, [[float(count)] for count in bytes_]).value

    def claimed(self, order: str) -> float:
        return claimed_exponent(order, self.lengths)


@cache
def measured(name: str, pattern: Pattern, padded: bool) -> Measured:
    setting = SETTINGS[name]
    lengths = tuple(length // 2 for length in LENGTHS) if setting.card.time_order == "L^2" else LENGTHS
    passing(setting, pattern, 16, padded)()  # what is set up once is out
    peak, largest = [], []
    for length in lengths:
        call = passing(setting, pattern, length, padded)
        gc.collect()  # memory that dies during the call without having been born in it would be subtracted
        with profile(use_kineto=True, profile_memory=True) as traced:
            call()
        events = sorted(traced.kineto_results.events(), key=lambda event: event.start_ns())
        sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
        peak.append(max(accumulate(sizes)))
        largest.append(max(sizes))
    return Measured(lengths, peak, largest)


CASES = [
    pytest.param(name, pattern, padded, id=f"{name}-{pattern.short}{'-padded' if padded else ''}")
    for name, setting in SETTINGS.items()
    for pattern in setting.card.supports
    for padded in (False, True)
    if not options_exclude(setting.kind, setting.options, pattern)
    and setting.card.memory_order != "L^2"  # nothing to hold them to; see the first test
]


def test_materialised_weights_are_seen() -> None:
    found = measured("softmax", Pattern.NONCAUSAL_SELF, False)
    assert found.exponent(found.largest) == pytest.approx(2, abs=0.01)  # the L x L weights, to the byte
    assert found.exponent(found.peak) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(("name", "pattern", "padded"), CASES)
def test_memory_grows_no_faster_than_the_card_says(name: str, pattern: Pattern, padded: bool) -> None:
    found = measured(name, pattern, padded)
    claimed = found.claimed(SETTINGS[name].card.memory_order)
    # 0.1 is what the project promises. What has a constant size makes the exponent smaller.
    assert found.exponent(found.peak) < claimed + 0.1, found
    assert found.exponent(found.largest) < claimed + 0.1, found


@pytest.mark.parametrize(("name", "pattern", "padded"), CASES)
def test_no_tensor_holds_a_sum_for_each_position(name: str, pattern: Pattern, padded: bool) -> None:
    """Nothing as large as L x r x D, of which growth with L says nothing."""
    setting = SETTINGS[name]
    options: dict[str, Any] = {**defaults(setting.kind), **setting.options}
    ranks = [options[option] for option in RANKS if isinstance(options.get(option), int)]
    found = measured(name, pattern, padded)
    for length, size in zip(found.lengths, found.largest, strict=True):
        assert size < 4 * length * WIDTH * min([WIDTH, *ranks]), found
