"""T3 perturbation leak, T4 prefix consistency, T5 value-only leak, T6 influence, T11 incremental = parallel."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from attention_zoo.conformance.certificate import Result, Status
from attention_zoo.conformance.subject import Bench, Inputs, Line, Subject, describe, gap, ragged, scattered
from attention_zoo.contract import Pattern, State, Support, Unsupported

BATCH = 4
# Prefixes of another length order their float64 sums differently; see OUTPUT_TOLERANCE in against_oracle.
PREFIX_TOLERANCE = 1e-9
# Changing all inputs on one side by O(1) moves the output by the order of the output itself.
LEAST_INFLUENCE = 1e-3


def _cuts(length: int) -> list[Tensor]:
    """Positions t, one per sample, whose future is changed: the ends, the middle, the edges of a scan's chunk."""
    last = length - 2
    wanted = [0, length // 2, last, length // 3, 1, 2 * length // 3, 63, 64]
    return [torch.tensor([min(max(t, 0), last) for t in wanted[i : i + BATCH]]) for i in (0, BATCH)]


def _not_causal(test: str, title: str, bench: Bench, subject: Subject) -> Result:
    reason = f"{bench.pattern} is not causal"
    return Result(test, title, subject.level, "future", Status.NOT_APPLICABLE, reason=reason)


def t3_leak(bench: Bench, subject: Subject) -> Iterator[Result]:
    title = "perturbation leak"
    if not bench.pattern.is_causal:
        yield _not_causal("T3", title, bench, subject)
        return
    line = Line("T3", title, subject.level, "the future changed, equal bits up to t")
    # The longest also at layer level: a leak by sorting or selection may need more than one block.
    for shape in dict.fromkeys([*bench.some_shapes(subject), bench.shapes[-1]]):
        if shape[0] < 2:
            continue
        for index, cuts in enumerate(_cuts(shape[0])):
            x = subject.draw(BATCH, *shape, seed=index).masked(ragged(BATCH, shape[1]) if index else None)
            later = torch.arange(shape[0])[None] > cuts[:, None]
            # Larger tokens move a maximum over the keys, which equally large ones may leave where it was.
            for scale in (1.0, 4.0):
                other = subject.draw(BATCH, *shape, seed=100 + index, scale=scale)
                changed = x.queries_from(other, later) if bench.pattern.is_cross else x.tokens_from(other, later)
                line.see(describe(x), _difference(subject, x, changed, ~later), 0.0)
            if x.mask is not None and bench.pattern is Pattern.CAUSAL_SELF:
                changed = x.masked(torch.where(later, scattered(BATCH, shape[1], seed=7), x.mask))
                line.see(describe(x, "(other padding)"), _difference(subject, x, changed, ~later), 0.0)
    for shape in bench.long_shapes if subject is bench.subjects[0] else ():
        x, other = subject.draw(BATCH, *shape, seed=13), subject.draw(BATCH, *shape, seed=113, scale=4.0)
        later = torch.arange(shape[0])[None] > torch.tensor([[0], [63], [3 * shape[0] // 4], [shape[0] // 2]])
        changed = x.queries_from(other, later) if bench.pattern.is_cross else x.tokens_from(other, later)
        line.see(describe(x), _difference(subject, x, changed, ~later), 0.0)
    result = line.result()
    if bench.support is not Support.VALUE_CAUSAL:
        yield result
    elif line.broken:
        what, reason = result.case, "declared value_causal: it must leak here, and does"
        yield Result("T3", title, subject.level, what, Status.NOT_APPLICABLE, result.detail, reason)
    else:
        what = "declared value_causal, but nothing leaked: it is causal"
        yield Result("T3", title, subject.level, result.case, Status.FAIL, what)


def _difference(subject: Subject, x: Inputs, changed: Inputs, rows: Tensor) -> float:
    with torch.no_grad():
        return gap(subject.run(x), subject.run(changed), rows)


def t4_prefix(bench: Bench, subject: Subject) -> Iterator[Result]:
    title = "prefix consistency"
    if not bench.pattern.is_causal:
        yield _not_causal("T4", title, bench, subject)
        return
    if bench.support is Support.VALUE_CAUSAL:
        reason = "card: value_causal, so what is selected depends on the future"
        yield Result("T4", title, subject.level, "prefixes", Status.NOT_APPLICABLE, reason=reason)
        return
    line = Line("T4", title, subject.level, "f(x[:t]) = f(x)[:t]")
    long = bench.long_shapes if subject is bench.subjects[0] else []
    for index, shape in enumerate([*bench.some_shapes(subject), *long]):
        if shape[0] < 2:
            continue
        mask = scattered(BATCH, shape[1], seed=3) if index % 2 else None
        x = subject.draw(BATCH, *shape, seed=2).masked(mask)
        with torch.no_grad():
            whole = subject.run(x)
            for length in sorted({1, 2, shape[0] // 2, min(64, shape[0] - 1), shape[0] - 1}):
                part = x.head(length, x.length_k if bench.pattern.is_cross else length)
                error = gap(subject.run(part), whole[..., :length, :], subject.valid_queries(part))
                line.see(describe(x, f"cut to {length}"), error, PREFIX_TOLERANCE)
    yield line.result()


def t5_value_leak(bench: Bench, subject: Subject) -> Iterator[Result]:
    title = "value-only leak"
    reason = ""
    if not bench.pattern.is_causal:
        reason = f"{bench.pattern} is not causal"
    elif bench.pattern.is_cross:
        reason = "the values are the source's, which every output may see"
    elif subject.level == "layer":
        if bench.op is not None:
            return
        reason = f"card: no op level, so no values apart: {bench.card.no_core_reason}"
    if reason:
        yield Result("T5", title, subject.level, "future values", Status.NOT_APPLICABLE, reason=reason)
        return
    line = Line("T5", title, subject.level, "future values changed, equal bits up to t")
    for shape in bench.some_shapes(subject, least=2):
        for index, cuts in enumerate(_cuts(shape[0])):
            x = subject.draw(BATCH, *shape, seed=index).masked(ragged(BATCH, shape[1]) if index else None)
            later = torch.arange(shape[0])[None] > cuts[:, None]
            changed = x.values_from(subject.draw(BATCH, *shape, seed=100 + index), later)
            line.see(describe(x), _difference(subject, x, changed, ~later), 0.0)
    yield line.result()


def t6_influence(bench: Bench, subject: Subject) -> Iterator[Result]:
    """An output changes when what it should see changes: the past (CS), both sides (NS), the source (NC, CC)."""
    sides = ["the source"] if bench.pattern.is_cross else ["the past"]
    if bench.pattern is Pattern.NONCAUSAL_SELF:
        sides.append("the future")
    if subject.level == "op":
        sides += [f"the values of {side}" for side in sides]
    for side in sides:
        line = Line("T6", "influence", subject.level, f"{side} moves the output")
        for shape in bench.some_shapes(subject, least=3):
            x = subject.draw(BATCH, *shape, seed=4)
            other = subject.draw(BATCH, *shape, seed=104)
            t = shape[0] // 2
            position = torch.arange(shape[1])[None].expand(BATCH, -1)
            if "source" in side:
                rows = torch.ones_like(position, dtype=torch.bool)
            else:
                rows = position < t if "past" in side else position > t
            if "values" in side:
                changed = x.values_from(other, rows)
            else:
                changed = x.keys_from(other, rows) if bench.pattern.is_cross else x.tokens_from(other, rows)
            with torch.no_grad():
                before, after = subject.run(x)[..., t, :], subject.run(changed)[..., t, :]
            moved = float((after - before).abs().mean())
            share = moved / max(float(before.abs().mean()), 1e-30)
            if bench.card.past_influence:
                line.hold(describe(x, f"t={t}"), share >= LEAST_INFLUENCE, f"output moved by {share:.1e} of its size")
            else:
                line.hold(describe(x, f"t={t}"), moved == 0, f"output moved by {share:.1e} of its size")
        result = line.result()
        if not bench.card.past_influence and result.status is Status.PASS:
            reason = "card: other positions do not influence an output, and none was seen to"
            result = dataclasses.replace(result, status=Status.NOT_APPLICABLE, reason=reason)
        elif not bench.card.past_influence:
            result = dataclasses.replace(result, detail=f"declared without influence, but {result.detail}")
        yield result


def t11_incremental(bench: Bench, subject: Subject) -> Iterator[Result]:
    title = "incremental = parallel"
    if not bench.pattern.is_causal:
        yield _not_causal("T11", title, bench, subject)
        return
    if bench.pattern not in bench.card.incremental:
        yield _refuses(bench, subject, title)
        return
    outputs = Line("T11", title, subject.level, "prefill and steps")
    state_line = Line("T11", title, subject.level, "bytes of the state are as declared")
    kept = Line("T11", title, subject.level, "a step leaves the old state as it was")
    for shape in bench.some_shapes(subject, least=3):
        for prefix, with_mask in ((1, False), (shape[0] // 2, True), (shape[0] - 1, False)):
            _decode(bench, subject, shape, prefix, with_mask, outputs, state_line, kept)
        if shape == bench.shapes[-1]:  # past the end of a block that is not the first: what is kept of it is added to
            _decode(bench, subject, shape, shape[0] - 31, True, outputs, state_line, kept, steps=31)
    yield from (outputs.result(), state_line.result(), kept.result())


def _decode(
    bench: Bench,
    subject: Subject,
    shape: tuple[int, int],
    prefix: int,
    with_mask: bool,
    outputs: Line,
    state_line: Line,
    kept: Line,
    steps: int = 9,
) -> None:
    cross = bench.pattern.is_cross
    x = _decodable(subject.draw(BATCH, *shape, seed=6))
    if with_mask:
        mask = scattered(BATCH, shape[1], seed=5)
        if not cross:
            mask[:, prefix:] = False  # what is decoded is no padding
        x = x.masked(mask)
    last = min(shape[0], prefix + steps)
    part = x.head(prefix, shape[1] if cross else prefix)
    with torch.no_grad():
        whole = subject.run(x.head(last, shape[1] if cross else last))
        out, state = subject.prefill(part)
        valid = subject.valid_queries(part)
        outputs.see(describe(x, f"prefill {prefix}"), gap(out, whole[..., :prefix, :], valid), PREFIX_TOLERANCE)
        for position in range(prefix, last):
            before = copy.deepcopy(state)
            out, following = subject.step(x, position, state)
            error = gap(out, whole[..., position : position + 1, :])
            outputs.see(describe(x, f"prefill {prefix}, step {position}"), error, PREFIX_TOLERANCE)
            if position == prefix:
                kept.hold(describe(x, f"prefill {prefix}"), _same(before, state), "the step changed the state given")
                again, _ = subject.step(x, position, state)
                kept.hold(describe(x, f"prefill {prefix}"), torch.equal(again, out), "the same step twice differs")
            state = following
    if not with_mask:  # a mask is carried beside the state proper
        length = shape[1] if cross else last
        declared = subject.module.state_bytes(BATCH, length, 8)
        text = f"state.nbytes is {state.nbytes}, state_bytes({BATCH}, {length}, 8) says {declared}"
        state_line.hold(describe(x, f"after {last}"), state.nbytes == declared, text)


def _decodable(x: Inputs) -> Inputs:
    """For a layer, whose prefill takes one source: values are the keys."""
    return dataclasses.replace(x, v=x.k) if x.q.ndim == 3 else x


def _same(a: State, b: State) -> bool:
    for field in dataclasses.fields(a):
        left, right = getattr(a, field.name), getattr(b, field.name)
        if isinstance(left, Tensor):
            if not torch.equal(left, right):
                return False
        elif not isinstance(left, list | tuple | dict) and left != right:
            return False
    return True


def _refuses(bench: Bench, subject: Subject, title: str) -> Result:
    """Without an incremental form ``prefill`` raises Unsupported: one that works is an undeclared form."""
    x = _decodable(subject.draw(BATCH, 7, 7, seed=8))
    try:
        with torch.no_grad():
            subject.prefill(x)
    except Unsupported as refusal:
        reason = f"card: no incremental form in {bench.pattern}"
        return Result(
            "T11", title, subject.level, "prefill", Status.NOT_APPLICABLE, f"refused: {refusal.reason}", reason
        )
    text = f"the card declares no incremental form in {bench.pattern}, but prefill works"
    return Result("T11", title, subject.level, "prefill", Status.FAIL, text)
