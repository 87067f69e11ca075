"""Whether a layer can take over pretrained projections as it is, without training."""

from __future__ import annotations

from attention_zoo.contract import Attention, ProjectedAttention, Unsupported
from attention_zoo.eligibility import PROJECTIONS, left_out


def require_drop_in(layer: Attention) -> None:
    """Raises :class:`Unsupported` where W_Q, W_K, W_V and W_O are not all that training decides in the layer.

    A layer that ignores queries and keys alike, a floor, needs neither of their projections. One that has only some of
    the projections reads raw inputs in the place of the others, and one with further parameters has them untrained.
    """
    refused = f"{layer.card.name} cannot be dropped into a pretrained model"
    if not isinstance(layer, ProjectedAttention):
        raise Unsupported(f"{refused}: it has no projections of queries, keys and values")
    if missing := left_out(layer):
        raise Unsupported(f"{refused}: it has no {' and '.join(missing)} projection to take the pretrained one")
    own = [key for key, _ in layer.named_parameters() if key.split("_projection.")[0] not in PROJECTIONS]
    if own:
        raise Unsupported(f"{refused}: its parameters {', '.join(own)} would be untrained")
