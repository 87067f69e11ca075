"""How far two point clouds are from each other: Chamfer distances and the F-score.

With the distances ``d_i = min_j |p_i - g_j|`` of the predicted points and ``e_j = min_i |g_j - p_i|`` of the true ones:

    CD-l1 = (mean d + mean e) / 2        CD-l2 = mean d^2 + mean e^2        (Yuan et al., PCN, 3DV 2018, section 4.3)
    F(t)  = 2 P R / (P + R),  P = share of d < t,  R = share of e < t       (Tatarchenko et al., CVPR 2019, section 4)

CD-l1 is halved and CD-l2 is not, as in the tables of PoinTr and CAB; these give both times 1000, and t = 0.01.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from tasks.pcc.points import CHUNK, nearest_distance

THRESHOLD = 0.01  # of the F-score: 1 % of the size of a shape, whose bounding sphere has diameter 1
SCALE = 1000.0  # of the Chamfer distances in published tables


def distances(
    predicted: Float[Tensor, "B N 3"], truth: Float[Tensor, "B M 3"], *, chunk: int = CHUNK
) -> tuple[Float[Tensor, "B N"], Float[Tensor, "B M"]]:
    """d and e: from each predicted point to the truth, and from each true point to the prediction."""
    return nearest_distance(predicted, truth, chunk=chunk), nearest_distance(truth, predicted, chunk=chunk)


def chamfer_l1(d: Float[Tensor, "B N"], e: Float[Tensor, "B M"]) -> Float[Tensor, " B"]:
    """CD-l1 per cloud, in the clouds' unit."""
    return (d.mean(-1) + e.mean(-1)) / 2


def chamfer_l2(d: Float[Tensor, "B N"], e: Float[Tensor, "B M"]) -> Float[Tensor, " B"]:
    """CD-l2 per cloud, in the clouds' unit squared."""
    return d.square().mean(-1) + e.square().mean(-1)


def f_score(d: Float[Tensor, "B N"], e: Float[Tensor, "B M"], threshold: float = THRESHOLD) -> Float[Tensor, " B"]:
    """F per cloud, from 0 to 1; 0 where no point is within the threshold."""
    precision, recall = ((distance < threshold).to(distance).mean(-1) for distance in (d, e))
    return 2 * precision * recall / (precision + recall).clamp(min=torch.finfo(precision.dtype).tiny)


def scores(predicted: Float[Tensor, "B N 3"], truth: Float[Tensor, "B M 3"]) -> dict[str, Float[Tensor, " B"]]:
    """The metrics of the card per cloud, in float64 and scaled as in published tables."""
    d, e = distances(predicted.double(), truth.double())
    return {"cd_l1": SCALE * chamfer_l1(d, e), "cd_l2": SCALE * chamfer_l2(d, e), "f_score": f_score(d, e)}
