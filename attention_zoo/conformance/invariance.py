"""T7 padding content, T8 trimmed equality, T9 batch, T10 permutation, T13 large logits, T14 nothing visible."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attention_zoo.conformance.certificate import Result, Status
from attention_zoo.conformance.subject import Bench, Inputs, Line, Subject, describe, gap, ragged, scattered
from attention_zoo.contract import HeadwiseAttention, Pattern

BATCH = 4
# Passes of other shapes, or with the same terms in another order, differ by roundings of float64 sums.
TOLERANCE = 1e-9


def t7_padding_content(bench: Bench, subject: Subject) -> Iterator[Result]:
    line = Line("T7", "padding-content invariance", subject.level, "other content at padded keys")
    for shape in bench.some_shapes(subject, least=2):
        for mask in (ragged(BATCH, shape[1]), scattered(BATCH, shape[1], seed=2)):
            x = subject.draw(BATCH, *shape, seed=1).masked(mask)
            for scale in (1.0, 10.0):
                other = subject.draw(BATCH, *shape, seed=101, scale=scale)
                other = other.map(lambda tensor, scale=scale: scale * tensor)  # type: ignore[misc]
                changed = x.keys_from(other, mask) if bench.pattern.is_cross else x.tokens_from(other, mask)
                with torch.no_grad():
                    error = gap(subject.run(x), subject.run(changed), subject.valid_queries(x))
                line.see(describe(x), error, TOLERANCE)
    yield line.result()


def t8_trimmed(bench: Bench, subject: Subject) -> Iterator[Result]:
    line = Line("T8", "trimmed equality", subject.level, "a padded sample equals the cut one")
    for shape in bench.some_shapes(subject, least=2):
        mask = ragged(BATCH, shape[1])
        x = subject.draw(BATCH, *shape, seed=3).masked(mask)
        with torch.no_grad():
            together = subject.run(x)
            for index in range(BATCH):
                kept = int((~mask[index]).sum())
                if kept == 0:
                    continue
                length_q = shape[0] if bench.pattern.is_cross else kept
                alone = subject.run(x.sample(index).head(length_q, kept).masked(None))
                error = gap(alone, together[index : index + 1, ..., :length_q, :])
                line.see(describe(x, f"cut to {kept}"), error, TOLERANCE)
    if bench.card.trimmed_equality:
        yield line.result()
    elif not bench.card.trimmed_reason:
        text = "the card declares no trimmed equality and gives no trimmed_reason"
        yield Result("T8", line.title, subject.level, line.what, Status.FAIL, text)
    else:
        yield line.excused("trimmed_equality", f"card: {bench.card.trimmed_reason}")


def t9_batch(bench: Bench, subject: Subject) -> Iterator[Result]:
    line = Line("T9", "batch invariance", subject.level, "a sample in a batch equals the sample alone")
    # Long ones too: what is done in pieces that fit a cache may be in one piece for a sample, in several for a batch.
    long = bench.long_shapes if subject is bench.subjects[0] else []
    for shape in [*bench.some_shapes(subject), *long]:
        masks = [None, ragged(BATCH, shape[1]), scattered(BATCH, shape[1], seed=4)]
        for mask in masks[2:] if shape in long else masks:
            # Samples of unlike size: a maximum or a mean over the batch moves the small ones.
            size = torch.tensor([1.0, 3.0, 0.3, 1.0], dtype=torch.float64)
            x = subject.draw(BATCH, *shape, seed=5)
            x = x.map(lambda tensor, size=size: tensor * size.view(-1, *[1] * (tensor.ndim - 1)))  # type: ignore[misc]
            x = x.masked(mask)
            with torch.no_grad():
                together = subject.run(x)
                for index in range(BATCH):
                    one = x.sample(index)
                    rows = subject.valid_queries(one)
                    line.see(describe(x), gap(subject.run(one), together[index : index + 1], rows), TOLERANCE)
    yield line.result()


def t10_permutation(bench: Bench, subject: Subject) -> Iterator[Result]:
    title = "permutation"
    if bench.pattern is Pattern.CAUSAL_SELF:
        reason = "causal_self is ordered by definition"
        yield Result("T10", title, subject.level, "tokens", Status.NOT_APPLICABLE, reason=reason)
        return
    what = "keys permuted, queries permuted" if bench.pattern.is_cross else "tokens permuted"
    line = Line("T10", title, subject.level, what)
    # An order that enters may show between far blocks only.
    long = [] if bench.card.permutation_equivariant or subject is not bench.subjects[0] else bench.long_shapes
    for shape in [*bench.some_shapes(subject, least=3), *long]:
        for mask in (None,) if shape in long else (None, scattered(BATCH, shape[1], seed=6)):
            x = subject.draw(BATCH, *shape, seed=7).masked(mask)
            generator = torch.Generator().manual_seed(8)
            order_k = torch.randperm(shape[1], generator=generator)
            order_q = torch.randperm(shape[0], generator=generator) if bench.pattern.is_cross else order_k
            permuted = Inputs(
                x.q[..., order_q, :],
                None if x.k is None else x.k[..., order_k, :],
                None if x.v is None else x.v[..., order_k, :],
                None if x.mask is None else x.mask[:, order_k],
            )
            with torch.no_grad():
                error = gap(subject.run(permuted), subject.run(x)[..., order_q, :], subject.valid_queries(permuted))
            line.see(describe(x), error, TOLERANCE)
    if bench.card.permutation_equivariant:
        yield line.result()
    else:
        yield line.excused("permutation_equivariant", "card: the order of the tokens enters")


def t13_large_logits(bench: Bench, subject: Subject) -> Iterator[Result]:
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        line = Line("T13", "large logits", subject.level, f"finite at logits of 1e4 in {name}")
        module = subject.copy(dtype)
        for shape in bench.some_shapes(subject):
            for mask in (None, ragged(BATCH, shape[1])):
                x = _with_large_logits(subject.draw(BATCH, *shape, seed=9)).masked(mask)
                with torch.no_grad():
                    finite = bool(torch.isfinite(subject.run(x.to(dtype), module)).all())
                line.hold(describe(x), finite, "an output is not finite")
        yield line.result()
    if subject.level == "layer":
        if bench.op is None:
            reason = f"card: no op level: {bench.card.no_core_reason}"
            yield Result("T13", "shift of logits", "layer", "float64", Status.NOT_APPLICABLE, reason=reason)
        return
    yield _shift(bench, subject)


def _with_large_logits(x: Inputs) -> Inputs:
    """Logits around +-1e4; in the second sample all near +1e4, in the third all near -1e4."""
    q, k = 100.0 * x.q, None if x.k is None else 100.0 * x.k
    direction = torch.ones(q.shape[-1], dtype=q.dtype) * 100.0 * q.shape[-1] ** -0.25
    q[1] = direction + x.q[1]
    q[2] = direction + x.q[2]
    if k is not None and x.k is not None:
        k[1] = direction + x.k[1]
        k[2] = -direction + x.k[2]
    return Inputs(q, k, x.v, x.mask)


def _shift(bench: Bench, subject: Subject) -> Result:
    """Moving all keys by one vector u adds q_i . u to every logit of row i, which a softmax over the row cancels.

    What is chosen by the keys moves too, so for a discrete mechanism a claim is tried at lengths that one block holds.
    """
    discrete = bench.card.discrete and bench.card.softmax_logits
    what = "keys moved by one vector, float64" + (", within one block" if discrete else "")
    line = Line("T13", "shift of logits", subject.level, what)
    keys_matter = False
    for shape in bench.some_shapes(subject, least=2):
        if discrete and max(shape) > 17:
            continue
        x = subject.draw(BATCH, *shape, seed=10).masked(ragged(BATCH, shape[1]) if shape[1] % 2 else None)
        assert x.k is not None
        u = 5.0 * torch.randn(x.k.shape[-1], dtype=x.k.dtype, generator=torch.Generator().manual_seed(11))
        with torch.no_grad():
            out, rows = subject.run(x), subject.valid_queries(x)
            line.see(describe(x), gap(out, subject.run(Inputs(x.q, x.k + u, x.v, x.mask)), rows), TOLERANCE)
            keys_matter |= gap(out, subject.run(Inputs(x.q, 2 * x.k, x.v, x.mask)), rows) > TOLERANCE
    if bench.card.softmax_logits:
        return line.result()
    if not keys_matter:
        line.hold("all cases", False, "no key moves the output, so there are no logits")
    return line.excused("softmax_logits", "card: the weights are no softmax of logits")


def _leading(batch: int, length: int) -> Tensor:
    """Padding in front, whose rows see nothing in a causal self pattern; one sample is all padding."""
    count = torch.tensor([min(index, length) if index < batch - 1 else length for index in range(batch)])
    return torch.arange(length)[None] < count[:, None]


def t14_nothing_visible(bench: Bench, subject: Subject) -> Iterator[Result]:
    blank = "zeros" if subject.level == "op" else "the output bias"
    if subject.level == "layer" and bench.op is None:
        blank = "one constant"
    outputs = Line("T14", "nothing visible", subject.level, f"rows that see no key are {blank}")
    gradients = Line("T14", "nothing visible", subject.level, "finite gradients")
    for shape in bench.some_shapes(subject):
        for mask in (ragged(BATCH, shape[1]), _leading(BATCH, shape[1]), torch.ones(BATCH, shape[1], dtype=torch.bool)):
            x = subject.draw(BATCH, *shape, seed=12).masked(mask)
            leaves = x.map(lambda tensor: tensor.detach().requires_grad_())
            out = subject.run(leaves)
            blind = subject.blind_queries(x)
            outputs.see(describe(x), gap(out, _blank(bench, subject, out, blind), blind), 1e-12)
            if not out.requires_grad:
                continue
            total = (out * torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype)).sum()
            parameters = [parameter for parameter in subject.module.parameters() if parameter.requires_grad]
            found = torch.autograd.grad(total, [*leaves.tensors, *parameters], allow_unused=True)
            finite = all(bool(torch.isfinite(gradient).all()) for gradient in found if gradient is not None)
            gradients.hold(describe(x), finite, "a gradient is not finite")
    yield outputs.result()
    yield gradients.result()


def _blank(bench: Bench, subject: Subject, out: Tensor, blind: Tensor) -> Tensor:
    """What a row that sees nothing must be: 0 after the core, b_O after a layer's output projection."""
    if subject.level == "op":
        return torch.zeros_like(out)
    if isinstance(subject.module, HeadwiseAttention):
        bias = getattr(subject.module.output_projection, "bias", None)
        return torch.zeros_like(out) if bias is None else bias.detach().expand_as(out)
    # A layer without a core: whatever it is, it can depend on nothing, so all such rows are the same.
    rows = out.detach()[blind]
    return rows[0].expand_as(out) if len(rows) else torch.zeros_like(out)
