"""T1 dense oracle, T2 collapse to softmax, T12 row-stochastic weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from attention_zoo.conformance.certificate import Result, Status
from attention_zoo.conformance.subject import (
    Bench,
    CoreSubject,
    Inputs,
    Line,
    Oracle,
    Subject,
    describe,
    gap,
    longest_length,
    new_core,
    ragged,
    row_gaps,
    scattered,
    softmax_attention,
)
from attention_zoo.contract import HeadwiseAttention, Pattern

# The two sides order the same float64 sums differently: some 1e2 roundings of 2e-16 on values of order one, and a
# hundred times that for sums that cancel. Gradients multiply two such results.
OUTPUT_TOLERANCE = 1e-10
GRADIENT_TOLERANCE = 1e-8
# In low precision an error may be this many times the oracle's own in the same precision (the two round differently:
# other order of the same sums), plus this many units in the last place of the largest output (intermediates that one
# side keeps and the other does not).
BUDGET_FACTOR, BUDGET_ULPS = 4.0, 4.0


def _masks(batch: int, shape: tuple[int, int]) -> list[Tensor | None]:
    """No mask, ragged and scattered padding; fewer of them at lengths where an oracle's loops take their time."""
    length = shape[1]
    if max(shape) < 60:
        return [None, ragged(batch, length), scattered(batch, length)]
    if max(shape) % 2 == 0:
        return [ragged(batch, length)]  # whole blocks, and a sample of half as many
    return [scattered(batch, length)] if max(shape) < 100 else [None]


def _tolerance(base: float, like: Tensor) -> float:
    largest = float(like.detach().abs().amax()) if like.numel() else 0.0
    return base * max(1.0, largest)


def _compared(subject: Subject, x: Inputs) -> Tensor:
    """Rows that oracle and mechanism must agree on: those with a meaningful output, and those that see nothing."""
    valid = subject.valid_queries(x)
    return valid if x.mask is None else valid | subject.blind_queries(x)


def t1_oracle(bench: Bench, subject: Subject) -> Iterator[Result]:
    if subject.level == "op":
        yield _linearity(bench, subject)
    why = "no oracle is shipped" if bench.oracle is None else bench.oracle.reason_against(subject)
    if bench.oracle is None or why:
        yield Result("T1", "dense oracle", subject.level, "outputs and gradients", Status.NOT_APPLICABLE, reason=why)
        return
    yield _outputs(bench, subject, bench.oracle)
    yield _gradients(bench, subject, bench.oracle)
    if bench.oracle.weights is not None and subject.level == "op" and bench.card.linear_in_values:
        yield _weights(bench, subject, bench.oracle)
    if subject.level == "op" or bench.op is None:
        for dtype in (torch.float32, torch.bfloat16):
            yield from _low_precision(bench, subject, bench.oracle, dtype)


def _outputs(bench: Bench, subject: Subject, oracle: Oracle) -> Result:
    line = Line("T1", "dense oracle", subject.level, "outputs in float64")
    for shape in bench.some_shapes(subject):
        for index, mask in enumerate(_masks(4, shape)):
            # Larger inputs sharpen the weights; odd and even masks see both.
            scale = 1.0 if (index + shape[1]) % 2 else 2.5
            x = subject.draw(4, *shape, seed=index, scale=scale).masked(mask)
            with torch.no_grad():
                expected = oracle.on(subject, x)
                error = gap(subject.run(x), expected, _compared(subject, x))
            line.see(describe(x), error, _tolerance(OUTPUT_TOLERANCE, expected))
    for shape in bench.long_shapes if subject.level == "op" or bench.op is None else ():
        x = subject.draw(1, *shape, seed=12)
        with torch.no_grad():
            expected = oracle.on(subject, x)
            line.see(describe(x), gap(subject.run(x), expected), _tolerance(OUTPUT_TOLERANCE, expected))
    return line.result()


def _gradients(bench: Bench, subject: Subject, oracle: Oracle) -> Result:
    line = Line("T1", "dense oracle", subject.level, "gradients in float64")
    for shape in bench.some_shapes(subject, least=3):
        if max(shape) > 140 or 20 < max(shape) < 131:
            continue
        for mask in [ragged(4, shape[1])] if max(shape) > 20 else [None, ragged(4, shape[1])]:
            x = subject.draw(4, *shape, seed=11).masked(mask)
            names, ours = _gradient(subject, x, None)
            _, theirs = _gradient(subject, x, oracle)
            for name, a, b in zip(names, ours, theirs, strict=True):
                error = float((a - b).abs().amax())
                error = error if error == error else float("inf")
                line.see(describe(x, f"for {name}"), error, _tolerance(GRADIENT_TOLERANCE, b))
    return line.result()


def _gradient(subject: Subject, x: Inputs, oracle: Oracle | None) -> tuple[list[str], list[Tensor]]:
    """Gradients of a fixed random functional of the meaningful outputs, by inputs and parameters; zeros for unused."""
    parameters = dict(subject.module.named_parameters())
    leaves = x.map(lambda tensor: tensor.detach().requires_grad_())
    out = subject.run(leaves) if oracle is None else oracle.on(subject, leaves)
    coefficients = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(5))
    rows = subject.valid_queries(x)
    rows = rows[:, None, :, None] if out.ndim == 4 else rows[:, :, None]
    inputs = [*leaves.tensors, *parameters.values()]
    names = ["q", "k", "v"][: len(leaves.tensors)] + list(parameters)
    total = (out * coefficients).masked_fill(~rows, 0.0).sum()
    if not total.requires_grad:
        return names, [torch.zeros_like(tensor) for tensor in inputs]
    found = torch.autograd.grad(total, inputs, allow_unused=True)
    return names, [torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)]


def probe(core: CoreSubject, x: Inputs) -> Tensor:
    """The implied weights [B, H, Lq, Lk]: the output for V = I (facts, T1)."""
    assert x.v is not None
    identity = torch.eye(x.length_k, dtype=x.v.dtype).expand(*x.v.shape[:2], -1, -1)
    with torch.no_grad():
        return core.run(Inputs(x.q, x.k, identity, x.mask))


def _linearity(bench: Bench, subject: Subject) -> Result:
    assert isinstance(subject, CoreSubject)
    line = Line("T1", "linear in the values", "op", "probed weights times V")
    for shape in bench.some_shapes(subject):
        if max(shape) > 140:
            continue
        x = subject.draw(4, *shape, seed=21).masked(ragged(4, shape[1]) if shape[1] % 2 else None)
        with torch.no_grad():
            out = subject.run(x)
        assert x.v is not None
        expected = probe(subject, x) @ x.v
        line.see(describe(x), gap(out, expected, _compared(subject, x)), _tolerance(OUTPUT_TOLERANCE, expected))
    if bench.card.linear_in_values:
        return line.result()
    return line.excused("linear_in_values", "card: not linear in the values")


def _weights(bench: Bench, subject: Subject, oracle: Oracle) -> Result:
    assert isinstance(subject, CoreSubject)
    assert oracle.weights is not None
    line = Line("T1", "dense oracle", "op", "probed weights")
    for shape in bench.some_shapes(subject, least=7):
        if max(shape) > 100:
            continue
        x = subject.draw(4, *shape, seed=31).masked(ragged(4, shape[1]))
        expected = oracle.weights(subject.module, x.q, x.k, key_padding_mask=x.mask)
        line.see(describe(x), gap(probe(subject, x), expected, _compared(subject, x)), OUTPUT_TOLERANCE)
    return line.result()


def _low_precision(bench: Bench, subject: Subject, oracle: Oracle, dtype: torch.dtype) -> Iterator[Result]:
    """Error against the float64 oracle on the rounded inputs and parameters, within a budget of the rounded oracle's.

    A choice that rounding turns changes a whole row, on either side; for a discrete mechanism the budget is therefore
    on the median row.
    """
    name = str(dtype).removeprefix("torch.")
    what = f"{name} within the budget of the {name} oracle"
    worst = Line("T1", "dense oracle", subject.level, what)
    median = Line("T1", "dense oracle", subject.level, f"{what}, median row")
    low = subject.copy(dtype)
    rounded = subject.copy(dtype).double()
    shapes = [shape for shape in bench.some_shapes(subject, least=7) if max(shape) in (17, 61)]
    for index, shape in enumerate(shapes):
        mask = ragged(4, shape[1]) if index % 2 else None
        x = subject.draw(4, *shape, seed=41).masked(mask).to(dtype)
        with torch.no_grad():
            truth = oracle.on(subject, x.to(torch.float64), rounded)
            rows = _compared(subject, x)
            ours = row_gaps(subject.run(x, low), truth, rows)
            theirs = row_gaps(oracle.on(subject, x, low), truth, rows)
        ulps = BUDGET_ULPS * torch.finfo(dtype).eps * float(truth.abs().amax())
        worst.see(describe(x), float(ours.amax()), BUDGET_FACTOR * float(theirs.amax()) + ulps)
        median.see(describe(x), float(ours.median()), BUDGET_FACTOR * float(theirs.median()) + ulps)
    if bench.card.discrete:
        yield median.result()
    else:
        yield worst.result()


def t2_collapse(bench: Bench, subject: Subject) -> Iterator[Result]:
    title = "collapse to softmax"
    if not isinstance(subject, CoreSubject) or not issubclass(bench.kind, HeadwiseAttention):
        if bench.op is None:
            reason = f"card: no op level: {bench.card.no_core_reason}"
            yield Result("T2", title, subject.level, "outputs", Status.NOT_APPLICABLE, reason=reason)
        return
    if bench.card.exact:
        line = Line("T2", title, "op", "exact, with the options as they are")
        for shape in bench.some_shapes(subject):
            _compare_with_softmax(line, subject, shape, OUTPUT_TOLERANCE)
        yield line.result()
    collapse = bench.card.collapses
    if collapse is None:
        reason = "card: no options make it softmax attention"
        yield Result("T2", title, "op", "collapse options", Status.NOT_APPLICABLE, reason=reason)
    elif bench.pattern not in collapse.patterns:
        reason = f"card: its options do not make it softmax attention in {bench.pattern}"
        yield Result("T2", title, "op", "collapse options", Status.NOT_APPLICABLE, reason=reason)
    elif collapse.options or not bench.card.exact:
        line = Line("T2", title, "op", ", ".join(f"{name}={value}" for name, value in collapse.options.items()))
        for shape in (shape for shape in bench.some_shapes(subject) if max(shape) < 140):
            # On the defaults, of which the card speaks: an option of the setting may exclude one of these.
            options = collapse.resolve(shape[1])
            # At its initial values: a parameter that starts as the identity is part of what makes it softmax.
            core = new_core(bench.kind, options, bench.pattern, longest_length(options), moved=False)
            _compare_with_softmax(line, CoreSubject(core, bench.pattern), shape, collapse.tolerance)
        yield line.result()


def _compare_with_softmax(line: Line, subject: CoreSubject, shape: tuple[int, int], tolerance: float) -> None:
    for mask in (None, ragged(4, shape[1])):
        x = subject.draw(4, *shape, seed=51).masked(mask)
        with torch.no_grad():
            out = subject.run(x)
        line.see(describe(x), gap(out, softmax_attention(subject.pattern, x), _compared(subject, x)), tolerance)


# Room for the tiny constant that keeps a kernel method's denominator off zero (1e-6 against elu(x)+1 features).
ROW_SUM_TOLERANCE = 1e-5


def t12_row_stochastic(bench: Bench, subject: Subject) -> Iterator[Result]:
    title = "row-stochastic"
    if not isinstance(subject, CoreSubject):
        if bench.op is None:
            reason = f"card: no op level: {bench.card.no_core_reason}"
            yield Result("T12", title, subject.level, "weights", Status.NOT_APPLICABLE, reason=reason)
        return
    if not bench.card.linear_in_values:
        reason = "card: the weights depend on the values"
        yield Result("T12", title, "op", "weights", Status.NOT_APPLICABLE, reason=reason)
        return
    vanishing = ", or to zero" if bench.card.vanishing_rows else ""
    stochastic = Line("T12", title, "op", f"weights are non-negative and rows sum to one{vanishing}")
    whole = Line("T12", title, "op", "no row vanishes")
    unseen = Line("T12", title, "op", "no weight on padded keys" + _future(bench))
    for shape in bench.some_shapes(subject):
        if max(shape) > 140:
            continue
        for mask in (None, scattered(4, shape[1], seed=1)):
            x = subject.draw(4, *shape, seed=61, scale=1.5).masked(mask)
            weights = probe(subject, x)
            visible = torch.ones(4, *shape, dtype=torch.bool) if mask is None else ~mask[:, None, :].expand(-1, *shape)
            if bench.pattern is Pattern.CAUSAL_SELF:
                visible = visible.tril()
            rows = subject.valid_queries(x) & visible.any(-1)
            sums = weights.sum(-1, keepdim=True)
            empty = (weights == 0).all(-1, keepdim=True)
            whole.see(describe(x), gap(empty.double(), torch.zeros_like(sums), rows), 0.0)
            wanted = torch.where(empty, 0.0, 1.0) if bench.card.vanishing_rows else torch.ones_like(sums)
            stochastic.see(describe(x), gap(sums, wanted.to(sums), rows), ROW_SUM_TOLERANCE)
            stochastic.see(describe(x, "(negative)"), gap(weights.clamp(max=0), torch.zeros_like(weights), rows), 1e-12)
            hidden = weights.masked_fill(visible[:, None], 0.0)
            unseen.see(describe(x), gap(hidden, torch.zeros_like(hidden), subject.valid_queries(x)), 1e-12)
        if max(shape) < 20 and not bench.card.vanishing_rows:
            x = _of_little_weight(subject.draw(4, *shape, seed=62))
            sums = probe(subject, x).sum(-1, keepdim=True)
            stochastic.see(describe(x, "(little weight)"), gap(sums, torch.ones_like(sums)), ROW_SUM_TOLERANCE)
    if bench.card.rows_sum_to_one:
        yield stochastic.result()
        if bench.card.vanishing_rows:
            yield whole.excused("vanishing_rows", "card: a row may carry no weight")
    else:
        yield stochastic.excused("rows_sum_to_one", "card: rows are no distribution")
    yield unseen.result()


def _of_little_weight(x: Inputs) -> Inputs:
    """Queries and keys far on the negative side, where features such as elu(x) + 1 are small.

    A denominator that is held above 0.1, or features with a constant added, go unseen where all weights are large.
    """
    assert x.k is not None
    return replace(x, q=x.q - 4.0, k=x.k - 4.0)


def _future(bench: Bench) -> str:
    return " or on the future" if bench.pattern is Pattern.CAUSAL_SELF else ""
