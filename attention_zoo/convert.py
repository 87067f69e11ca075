"""Puts a mechanism in place of the dense attention of a PyTorch model, and keeps what was trained.

    >>> model = convert(model, to="smyrf", rounds=4, cluster_size=32)

Replaced are ``nn.MultiheadAttention``, wherever it stands (in ``nn.TransformerEncoderLayer`` too, whose fast path would
otherwise go past what was put there), and layers of the zoo whose mechanism is exact attention with its four
projections. Projections stay the same parameters under the same names, so that a state dict fits before and after.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention_zoo._masks import read, visible_of
from attention_zoo._standin import Choice, Cores
from attention_zoo.contract import AttentionCore, Card, HeadwiseAttention, Pattern, ProjectedAttention, Unsupported
from attention_zoo.registry import build_core, mechanism


def convert(module: nn.Module, to: str, *, cross: Pattern | str = Pattern.CAUSAL_CROSS, **options: Any) -> nn.Module:
    """``module`` with every dense attention in it replaced, in place; what replaces ``module`` if it is one itself.

    What was put in by an earlier call is replaced, too.

    Args:
        to: a mechanism that can stand in (:mod:`attention_zoo.eligibility`), with its ``options``.
        cross: the pattern of attention to a second sequence in ``nn.MultiheadAttention``: causal, unless no decoder
            uses it. Layers of the zoo know their pattern.

    Raises ``ValueError`` if there is nothing to replace, :class:`UnknownName` and :class:`Unsupported` as
    :func:`attention_zoo.eligibility.require` does, or for an attention that has no equal (``add_bias_kv`` and
    ``add_zero_attn`` attend to keys that no sequence holds). Then nothing is replaced.
    """
    choice = Choice.of(to, options, cross)
    made: dict[nn.Module, nn.Module] = {}
    for part in module.modules():
        other = _replacement(part, choice, len(made))
        if other is not None:
            made[part] = other
    if not made:
        raise ValueError(
            f"{type(module).__name__} holds nothing to replace: neither nn.MultiheadAttention nor a layer of the zoo "
            "with exact attention and four projections (of transformers: attention_zoo.integrations.transformers)"
        )
    for parent in list(module.modules()):
        if isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False  # the form that the fast path of its layers takes
        for name, child in parent._modules.items():  # named_children tells a shared child once only
            if child is not None and child in made:
                setattr(parent, name, made[child])
    return made.get(module, module)


def _replacement(part: nn.Module, choice: Choice, number: int) -> nn.Module | None:
    if isinstance(part, StandIn) or (
        isinstance(part, HeadwiseAttention) and part.card.exact and len(part.projections) == 4
    ):
        return StandIn(part, choice, number)
    if isinstance(part, nn.MultiheadAttention | MultiheadStandIn):
        if isinstance(part, nn.MultiheadAttention) and type(part).forward is not nn.MultiheadAttention.forward:
            raise Unsupported(f"{type(part).__name__} is a multi-head attention with a forward pass of its own")
        return MultiheadStandIn(part, choice, number)
    return None


class StandIn(HeadwiseAttention):
    """The projections of a layer of exact attention around the core of another mechanism."""

    core_type: ClassVar[type[AttentionCore]] = AttentionCore  # of the core that it is given

    def __init__(self, trained: HeadwiseAttention, choice: Choice, number: int) -> None:
        choice.require(trained.pattern)
        kind = mechanism(choice.name)
        self.card: Card = kind.card  # type: ignore[misc]
        lengths = {"max_length": trained.max_length, "max_length_key": trained.max_length_key}
        with torch.random.fork_rng(devices=[]):
            ProjectedAttention.__init__(
                self,
                trained.embed_dim,
                trained.num_heads,
                trained.pattern,
                dropout=trained.dropout,
                bias=trained.bias,
                **lengths,
            )
            torch.default_generator.manual_seed(number)
            self.core = build_core(
                choice.name,
                trained.num_heads,
                trained.head_dim,
                trained.pattern,
                dropout=trained.dropout,
                **lengths,
                **choice.options,
            )
        for name in trained.projections:
            setattr(self, f"{name}_projection", getattr(trained, f"{name}_projection"))
        like = next(trained.output_projection.parameters())
        self.core.to(device=like.device, dtype=like.dtype)
        self.train(trained.training)


class MultiheadStandIn(nn.Module):
    """``nn.MultiheadAttention`` with its parameters and another core; the same arguments, and no weights returned.

    Masks must be key padding, and for one sequence causality; any other is :class:`Unsupported`.
    """

    # What nn.TransformerEncoderLayer asks before it takes its fast path, which would not come here.
    _qkv_same_embed_dim = False

    in_proj_weight: Tensor | None
    in_proj_bias: Tensor | None
    embed_dim: int
    kdim: int
    vdim: int
    num_heads: int
    head_dim: int
    dropout: float
    batch_first: bool
    out_proj: nn.Module

    def __init__(self, trained: nn.MultiheadAttention | MultiheadStandIn, choice: Choice, number: int) -> None:
        super().__init__()
        if isinstance(trained, nn.MultiheadAttention) and (trained.bias_k is not None or trained.add_zero_attn):
            asked = "add_zero_attn" if trained.add_zero_attn else "add_bias_kv"
            raise Unsupported(
                f"nn.MultiheadAttention with {asked} attends to a key that is of no sequence; no core does"
            )
        self.embed_dim, self.kdim, self.vdim = trained.embed_dim, trained.kdim, trained.vdim
        self.num_heads, self.head_dim = trained.num_heads, trained.head_dim
        self.dropout, self.batch_first = trained.dropout, trained.batch_first
        for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"):
            self.register_parameter(name, getattr(trained, name))
        self.out_proj = trained.out_proj
        self.cores = Cores(choice, number)
        self.train(trained.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """As ``nn.MultiheadAttention``, but for the weights: None is returned in their place, whatever was asked.

        ``need_weights`` is True by default there, and most who leave it so take the outputs alone.
        """
        if query.is_nested:
            raise Unsupported("a nested tensor cannot be attended to here; pass key_padding_mask")
        if is_causal and attn_mask is None:
            raise ValueError("is_causal says what attn_mask is, and there is none")
        one_sequence = query is key
        batched = query.ndim == 3
        if not batched:
            query, key, value = (x[None] for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._project(query, key, value)
        pattern, padding = self._read(attn_mask, key_padding_mask, q, k, one_sequence)
        out = self.cores.attend(pattern, q, k, v, padding, dropout=self.dropout, training=self.training)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if not batched:
            return out[0], None
        return (out if self.batch_first else out.transpose(0, 1)), None

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if self.in_proj_weight is not None:
            weights: tuple[Tensor, ...] = self.in_proj_weight.chunk(3)
        else:
            weights = tuple(self.get_parameter(f"{name}_proj_weight") for name in "qkv")
        biases = [None] * 3 if self.in_proj_bias is None else list(self.in_proj_bias.chunk(3))
        return tuple(
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )

    def _read(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, k: Tensor, one_sequence: bool
    ) -> tuple[Pattern, Tensor | None]:
        """The pattern, and the keys that all queries ignore. Boolean masks are True where a key is ignored, here."""
        padding, causal = None, False
        if key_padding_mask is not None:
            padding = ~visible_of(~key_padding_mask if key_padding_mask.dtype is torch.bool else key_padding_mask)
        if attn_mask is not None:
            visible = visible_of(~attn_mask if attn_mask.dtype is torch.bool else attn_mask)
            # [L, S], or [B H, L, S] with the heads of a sample together
            rows = visible[None, None] if visible.ndim == 2 else visible.unflatten(0, (q.shape[0], q.shape[1]))
            found = read(rows, q.shape[2])
            causal = bool(found.causal)
            if found.key_padding_mask is not None:
                hidden = found.key_padding_mask.expand(q.shape[0], -1)
                padding = hidden if padding is None else padding | hidden
        if not one_sequence:
            if causal:
                raise Unsupported("a causal mask between two sequences; a core is causal within one")
            return self.cores.choice.cross, padding
        return (Pattern.CAUSAL_SELF if causal else Pattern.NONCAUSAL_SELF), padding
