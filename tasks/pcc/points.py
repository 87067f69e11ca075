"""Farthest-point sampling, nearest neighbours and gathering on point clouds, in plain PyTorch and in bounded memory.

Shape letters: B clouds, N and M points, K neighbours. Neighbours are searched without gradient (indices have none), and
distances then taken from the points themselves.

On a CPU the search is by ``|x|^2 + |y|^2 - 2 x.y``, which is twice as fast and cancels for near points: in float32, of
points whose squared distances differ by less than some 1e-7 (with coordinates below 1/2) the farther may be found. The
metrics search in float64. On a GPU the search is by differences, for products may be rounded to TF32 there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK = 1 << 25  # distances that are held at once: 128 MiB in float32


def gather(values: Float[Tensor, "B N C"], indices: Int[Tensor, "B ..."]) -> Float[Tensor, "B ... C"]:
    """``values[b, indices[b, ...]]``.

    Not written so: the backward pass of advanced indexing adds up in the order in which threads come, and no two runs
    would be equal.
    """
    places = indices.flatten(1)[:, :, None].expand(-1, -1, values.shape[2])
    return values.gather(1, places).unflatten(1, indices.shape[1:])


def farthest_points(points: Float[Tensor, "B N 3"], count: int) -> Int[Tensor, "B count"]:
    """Each index is the point farthest from those before it; the first one is 0 (Eldar et al., 1997).

    The first m of a longer result are the result for ``count = m``, and what they are for the cloud of those points.

    Raises:
        ValueError: more points are asked for than there are.
    """
    if not 1 <= count <= points.shape[1]:
        raise ValueError(f"{count} farthest points of a cloud of {points.shape[1]}")
    with torch.no_grad():
        batch = torch.arange(len(points), device=points.device)
        chosen = torch.zeros(len(points), count, dtype=torch.long, device=points.device)
        distance = points.new_full(points.shape[:2], torch.inf)
        for step in range(1, count):
            last = points[batch, chosen[:, step - 1]]
            distance = torch.minimum(distance, (points - last[:, None]).square().sum(-1))
            chosen[:, step] = distance.argmax(-1)
    return chosen


def _distances(
    points: Float[Tensor, "B N 3"], source: Float[Tensor, "B M 3"], chunk: int
) -> Iterator[Float[Tensor, "B n M"]]:
    """Distances from a few points at a time to the whole source, at most ``chunk`` values (or one point's) at once."""
    rows = max(1, chunk // max(1, len(source) * source.shape[1]))
    mode = "use_mm_for_euclid_dist" if points.device.type == "cpu" else "donot_use_mm_for_euclid_dist"
    with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        for part in points.split(rows, dim=1):
            yield torch.cdist(part, source.to(part), compute_mode=mode)


def neighbours(
    points: Float[Tensor, "B N 3"], source: Float[Tensor, "B M 3"], count: int, *, chunk: int = CHUNK
) -> Int[Tensor, "B N K"]:
    """Indices of the K nearest points of ``source``, in no order; K is ``count``, or M where the source has fewer."""
    count = min(count, source.shape[1])
    parts = [part.topk(count, largest=False, sorted=False).indices for part in _distances(points, source, chunk)]
    return torch.cat(parts, dim=1)


def nearest(
    points: Float[Tensor, "B N 3"], source: Float[Tensor, "B M 3"], *, chunk: int = CHUNK
) -> Int[Tensor, "B N"]:
    """Index of the nearest point of ``source``."""
    return torch.cat([part.min(-1).indices for part in _distances(points, source, chunk)], dim=1)


def nearest_distance(
    points: Float[Tensor, "B N 3"], source: Float[Tensor, "B M 3"], *, chunk: int = CHUNK
) -> Float[Tensor, "B N"]:
    """``d_i = min_j |x_i - y_j|``, differentiable in both clouds; its gradient where d is zero is zero."""
    found = gather(source, nearest(points, source, chunk=chunk))
    return torch.linalg.vector_norm(points - found, dim=-1)
