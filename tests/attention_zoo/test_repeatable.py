"""Outputs and gradients of every setting are the same to the bit each time, on several threads too.

Sums whose order is that of the threads (advanced indexing backwards, atomic adds) would make two runs of one seed
differ, and a run that was cut end elsewhere than one that was not.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from shipped_configs import attention_settings

from attention_zoo.conformance.certify import options_exclude
from attention_zoo.contract import Pattern
from cab.settings import Setting

LENGTH, WIDTH, HEADS, TIMES = 512, 64, 4, 4


CASES = [
    pytest.param(setting, pattern, id=f"{name}-{pattern.short}")
    for (name, setting), pattern in itertools.product(attention_settings().items(), Pattern)
    if pattern in setting.card.supports and not options_exclude(setting.kind, setting.options, pattern)
]


@pytest.mark.parametrize(("setting", "pattern"), CASES)
def test_every_time_the_same_on_four_threads(setting: Setting, pattern: Pattern) -> None:
    torch.set_num_threads(4)
    inputs = torch.randn(2, LENGTH, WIDTH), torch.randn(2, LENGTH, WIDTH)
    found = []
    for _ in range(TIMES):
        torch.manual_seed(1)
        layer = setting.build(WIDTH, HEADS, pattern, max_length=LENGTH, max_length_key=LENGTH).train()
        given = [each.clone().requires_grad_() for each in inputs]
        out = layer(given[0], given[1], given[1]) if pattern.is_cross else layer(given[0])
        out.square().sum().backward()
        gradients = [each.grad for each in (*given, *layer.parameters()) if each.grad is not None]
        found.append([out.detach(), *gradients])
    for again in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], again, strict=True))
