"""How near a mechanism comes to dense softmax attention on given queries, keys and values.

With P the dense weights, o = P v, and W the weights that a core implies (its output for V = I), over the rows i of real
tokens that see a key:

    relative error     |W v - o| / |o|                                    (Frobenius norm)
    divergences        mean_i KL(P_i || W_i), infinite if W misses a pair; mean_i KL(W_i || P_i), finite if W >= 0
    captured mass      mean_i sum_j P_ij [W_ij != 0]: what dense attention gives to the pairs that the mechanism sees

For one round of SMYRF the last two say the same: W_i is P_i cut to a cluster, and KL(W_i || P_i) = -log of its mass.
The decay of the singular values of P is what SMYRF (arXiv:2010.05315) compares models by: where it is fast, few keys or
few directions carry a row.

    >>> with record(model) as calls:
    ...     model(x)
    >>> of_layers(calls, "smyrf", rounds=4)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo._standin import Choice, Cores
from attention_zoo.contract import AttentionCore, Pattern
from attention_zoo.softmax import attention_weights, visible_keys

# Of a row's sum from one, and of W v from the output, in units of either: far above rounding in float16, and below any
# mechanism whose rows are no distribution or whose output is not linear in the values.
NEAR = 2e-2


@dataclass(frozen=True)
class Fidelity:
    """See the module's docstring. What has no meaning is None, and ``reason`` says why."""

    relative_error: float
    captured_mass: float | None
    divergence: float | None  # KL(P || W)
    reverse_divergence: float | None  # KL(W || P)
    reason: str = ""


@dataclass(frozen=True)
class Call:
    """What came to a core: ``[B, H, L, D]``, and the name of the module that called it."""

    name: str
    pattern: Pattern
    q: Tensor
    k: Tensor
    v: Tensor
    key_padding_mask: Tensor | None


@dataclass(frozen=True)
class LayerFidelity:
    name: str
    pattern: Pattern
    fidelity: Fidelity


def dense_weights(
    q: Float[Tensor, "B H Lq D"],
    k: Float[Tensor, "B H Lk D"],
    pattern: Pattern,
    key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
) -> Float[Tensor, "B H Lq Lk"]:
    """P in float64; zero in a row that sees nothing."""
    visible = visible_keys(q.shape[2], k, key_padding_mask, causal=pattern is Pattern.CAUSAL_SELF)
    weights = attention_weights(q.double(), k.double(), visible)
    return weights if visible is None else weights * visible


def implied_weights(
    core: AttentionCore,
    q: Float[Tensor, "B H Lq D"],
    k: Float[Tensor, "B H Lk D"],
    key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
) -> Float[Tensor, "B H Lq Lk"]:
    """W: the output for V = I; the weights of a core that is linear in the values, as it is in evaluation."""
    identity = torch.eye(k.shape[2], dtype=q.dtype, device=q.device).expand(*k.shape[:2], -1, -1)
    return _evaluated(core, q, k, identity, key_padding_mask).double()


def singular_decay(weights: Float[Tensor, "*n Lq Lk"]) -> Float[Tensor, "*n R"]:
    """The singular values of each matrix, from the largest, which is 1; R = min(Lq, Lk)."""
    values = torch.linalg.svdvals(weights.double())
    return values / values[..., :1].clamp(min=torch.finfo(values.dtype).tiny)


@torch.no_grad()
def fidelity(
    core: AttentionCore,
    q: Float[Tensor, "B H Lq D"],
    k: Float[Tensor, "B H Lk D"],
    v: Float[Tensor, "B H Lk Dv"],
    *,
    key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
) -> Fidelity:
    """The core, as it is in evaluation, against dense attention in its pattern. Time and memory O(Lq Lk)."""
    dense = dense_weights(q, k, core.pattern, key_padding_mask)
    rows = dense.sum(-1) > 0
    if key_padding_mask is not None and not core.pattern.is_cross:
        rows = rows & ~key_padding_mask[:, None]
    expected = (dense @ v.double())[rows]
    out = _evaluated(core, q, k, v, key_padding_mask).double()[rows]
    error = float((out - expected).norm() / expected.norm())

    implied = implied_weights(core, q, k, key_padding_mask)
    if float(((implied @ v.double())[rows] - out).norm()) > NEAR * float(out.norm()):
        return Fidelity(error, None, None, None, "the output is not linear in the values, so it implies no weights")
    p, w = dense[rows], implied[rows]
    captured = float((p * (w != 0)).sum(-1).mean())
    if bool((w < 0).any()):
        return Fidelity(error, captured, None, None, "some weights are negative, so rows are no distributions")
    if float((w.sum(-1) - 1).abs().amax()) > NEAR:
        return Fidelity(error, captured, None, None, "rows do not sum to one, so they are no distributions")
    return Fidelity(error, captured, _divergence(p, w), _divergence(w, p))


def of_layers(calls: Iterable[Call], to: str, **options: Any) -> list[LayerFidelity]:
    """The fidelity of ``to`` in place of what was called, layer by layer.

    Raises what ``eligibility.require`` raises, :class:`Unsupported` for a pattern in which ``to`` cannot stand in, and
    ``ValueError`` if nothing was called.
    """
    choice = Choice.of(to, options)
    found: list[LayerFidelity] = []
    calls = list(calls)
    if not calls:
        raise ValueError(
            "no call of an attention was recorded: the model did not run, or its attention is none of the zoo's (load "
            "it with attn_implementation='cab_softmax', or convert it)"
        )
    for number, call in enumerate(calls):
        core = Cores(choice, number).core(call.pattern, call.q, call.k)
        of = fidelity(core, call.q, call.k, call.v, key_padding_mask=call.key_padding_mask)
        found.append(LayerFidelity(call.name, call.pattern, of))
    return found


@contextmanager
def record(model: nn.Module) -> Iterator[list[Call]]:
    """Collects what comes to the cores of the zoo while ``model`` runs: of layers, of what :mod:`attention_zoo.convert`
    put in, and of a model of transformers (with ``attn_implementation="cab_softmax"`` its own dense attention).
    """
    calls: list[Call] = []
    running: list[str] = []

    def called(core: nn.Module, given: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
        if isinstance(core, AttentionCore) and running:
            mask = named.get("key_padding_mask")
            q, k, v = (x.detach() for x in given)
            calls.append(Call(running[-1], core.pattern, q, k, v, mask))

    def left(*_: Any) -> None:
        running.pop()

    hooks = [nn.modules.module.register_module_forward_hook(called, with_kwargs=True)]
    for name, module in model.named_modules():
        if not isinstance(module, AttentionCore):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
            hooks.append(module.register_forward_hook(left, always_call=True))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _divergence(p: Float[Tensor, "n L"], w: Float[Tensor, "n L"]) -> float:
    """mean_i KL(p_i || w_i); infinite where a p_ij > 0 has a w_ij = 0."""
    return float((torch.xlogy(p, p) - torch.xlogy(p, w)).sum(-1).mean())


@torch.no_grad()
def _evaluated(core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    training = core.training
    try:
        return core.eval()(q, k, v, key_padding_mask=key_padding_mask)
    finally:
        core.train(training)
