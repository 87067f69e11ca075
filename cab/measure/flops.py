"""Floating-point operations of a forward pass, 2 per multiply-add: by the mechanism's formula, and counted by torch.

The formula (``flops`` of a layer or core) is what records carry: it credits what a mechanism does not compute, such as
the causal half. The count runs the module on the meta device, where nothing is computed and the fused kernel is
counted too (on the CPU it counts as nothing); it sees matrix products and convolutions only, and no causal credit.
"""

from __future__ import annotations

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cab.measure.model import DEPTH
from cab.measure.workload import Measurable, draw_inputs


def analytic_flops(module: Measurable, batch: int, length_q: int, length_k: int) -> int | None:
    """By the mechanism's own formula; None where it has none."""
    try:
        return module.flops(batch, length_q, length_k)
    except NotImplementedError:
        return None


def dense_equivalent_flops(level: str, batch: int, length_q: int, length_k: int, heads: int, head_dim: int) -> int:
    """Of exact attention at the same shape, no causal credit: what throughputs of unlike mechanisms are over.

    4 B H Lq Lk D for the two products of attention, with a layer's four projections, and a model's feed-forward layers.
    """
    width = heads * head_dim
    total = 4 * batch * length_q * length_k * width
    if level != "op":
        total += 2 * batch * 2 * (length_q + length_k) * width**2
    if level == "model":
        total = DEPTH * (total + 2 * 2 * batch * length_q * width * 4 * width)
    return total


def counted_flops(module: Measurable, batch: int, length_q: int, length_k: int) -> int:
    """Counted on the meta device. Moves ``module`` there: its values are lost."""
    module = module.to("meta").eval()
    inputs = draw_inputs(module, batch, length_q, length_k, device="meta")
    with FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops()


def parameter_count(module: nn.Module) -> int:
    """Numbers that training would change."""
    return sum(parameter.numel() for parameter in module.parameters())
