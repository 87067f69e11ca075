"""How near the attention of a drop-in run comes to the trained one, layer by layer, before anything is trained again.

Each layer under test gets the queries, keys and values that exact attention has there (see
:mod:`attention_zoo.fidelity`), so that errors of earlier layers do not count again.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attention_zoo.contract import HeadwiseAttention
from attention_zoo.fidelity import Call, Fidelity, dense_weights, fidelity, record, singular_decay
from cab.cells import Cell

SAMPLES = 4  # of the first validation batch: dense weights are kept in float64
_SPECTRA = 1  # samples whose singular values are taken; each takes longer than all else here

# (metric, attribute of Fidelity, unit, higher is better)
_MEASURES = (
    ("output_error", "relative_error", "1", False),
    ("captured_mass", "captured_mass", "1", True),
    ("row_divergence", "reverse_divergence", "nat", False),
)


def fidelity_of(
    cell: Cell, dense: torch.nn.Module, model: torch.nn.Module
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """Rows (the mean over layers), and per layer the arrays ``fidelity/<metric>`` of the side file; NaN where a measure
    has no meaning. For exact attention also ``fidelity/singular_values``: per layer, the mean over heads. A layer that
    is called several times (with titles and with articles, say) counts as the mean of its calls, and its singular
    values are those of the longest.

    Args:
        dense: the trained model with exact attention.
        model: the same weights with the attention under test.
    """
    batch = next(iter(cell.task.batches("validation", cell.config.seed)))
    dense.eval()
    with torch.inference_mode(), record(dense) as calls:
        cell.task.loss(dense, {name: tensor.to(cell.device) for name, tensor in batch.items()})
    layers = dict(model.named_modules())
    by_layer: dict[str, list[Call]] = {}
    for call in calls:
        if call.pattern is cell.pattern:
            by_layer.setdefault(call.name, []).append(_shortened(call, SAMPLES))
    found: list[list[Fidelity]] = []
    spectra: list[np.ndarray] = []
    for name, own in by_layer.items():
        layer = layers[name]
        if not isinstance(layer, HeadwiseAttention):
            return [], {}
        found.append([fidelity(layer.core, c.q, c.k, c.v, key_padding_mask=c.key_padding_mask) for c in own])
        if cell.setting.card.exact:
            spectra.append(_spectrum(max(own, key=lambda call: call.k.shape[2])))
    rows, arrays = [], {}
    for metric, attribute, unit, better in _MEASURES:
        values = np.array([[getattr(each, attribute) for each in own] for own in found], dtype=float).mean(axis=-1)
        arrays[f"fidelity/{metric}"] = values
        mean = float(values.mean()) if len(values) else math.nan
        if math.isfinite(mean):
            rows.append({"metric": metric, "value": mean, "unit": unit, "higher_is_better": better})
    if spectra:
        arrays["fidelity/singular_values"] = np.stack(spectra)
    return [row | {"phase": "fidelity", "split": "validation"} for row in rows], arrays


def _spectrum(call: Call) -> np.ndarray:
    """The mean over heads of the singular values of the dense weights, the largest of each being one."""
    few = _shortened(call, _SPECTRA)
    decay = singular_decay(dense_weights(few.q, few.k, few.pattern, few.key_padding_mask))
    return decay.flatten(0, -2).mean(0).cpu().numpy()


def _shortened(call: Call, samples: int) -> Call:
    def few(tensor: Tensor) -> Tensor:
        return tensor[:samples]

    mask = None if call.key_padding_mask is None else few(call.key_padding_mask)
    return replace(call, q=few(call.q), k=few(call.k), v=few(call.v), key_padding_mask=mask)
