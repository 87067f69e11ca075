"""S1 to S6: what the traps of the field ask of a module beside its mathematics (state, randomness, types, counts)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from attention_zoo.conformance.certificate import Result, Status
from attention_zoo.conformance.subject import (
    Bench,
    Line,
    Subject,
    defaults,
    describe,
    gap,
    longest_length,
    new_core,
    new_layer,
    ragged,
)
from attention_zoo.contract import HeadwiseAttention, Unsupported

BATCH = 4
TOLERANCE = 1e-9  # roundings of float64 sums where another kernel may run


def _fresh(bench: Bench, subject: Subject, seed: int, dropout: float = 0.0, longer: int = 0) -> nn.Module:
    longest = longest_length({**defaults(bench.kind), **bench.options}) + longer
    if subject.level == "op":
        assert issubclass(bench.kind, HeadwiseAttention)
        return new_core(bench.kind, bench.options, bench.pattern, longest, seed, dropout)
    return new_layer(bench.kind, bench.options, bench.pattern, longest, seed, dropout)


def s1_determinism(bench: Bench, subject: Subject) -> Iterator[Result]:
    what = "equal bits; global generator, inputs and state untouched"
    line = Line("S1", "determinism in evaluation", subject.level, what)
    held = copy.deepcopy(subject.module.state_dict())
    for shape in bench.some_shapes(subject, least=3):
        x = subject.draw(BATCH, *shape, seed=1).masked(ragged(BATCH, shape[1]))
        copies = [tensor.clone() for tensor in x.tensors]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            before = torch.get_rng_state()
            first = subject.run(x)
            line.hold(describe(x), torch.equal(before, torch.get_rng_state()), "it drew from the global generator")
            torch.manual_seed(2)
            line.hold(describe(x), torch.equal(first, subject.run(x)), "two passes differ")
        kept = all(torch.equal(a, b) for a, b in zip(copies, x.tensors, strict=True))
        line.hold(describe(x), kept, "an input was changed in place")
    now = subject.module.state_dict()
    moved = [name for name, value in held.items() if not _equal(value, now[name])]
    line.hold("all passes", not moved, f"{', '.join(moved)} of the state_dict changed in evaluation")
    yield line.result()


def _equal(a: object, b: object) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else a == b


def s2_state(bench: Bench, subject: Subject) -> Iterator[Result]:
    line = Line("S2", "state is state", subject.level, "the state_dict carries everything that the output depends on")
    other = _fresh(bench, subject, seed=3)
    saved = subject.module.state_dict()
    other.load_state_dict(saved)
    again = other.state_dict()
    for name, value in saved.items():
        line.hold(name, _equal(value, again[name]), "what was loaded is not what is saved again")
    for shape in bench.some_shapes(subject, least=7):
        x = subject.draw(BATCH, *shape, seed=2)
        with torch.no_grad():
            line.see(describe(x), gap(subject.run(x, other), subject.run(x)), 0.0)
    for name in _loose_tensors(_fresh(bench, subject, seed=4)):
        line.hold("construction", False, f"{name} is a tensor, but neither parameter nor buffer")
    yield line.result()


def _loose_tensors(module: nn.Module) -> list[str]:
    """Tensors that are plain attributes (or class attributes): they follow no device or dtype, and are not saved."""
    found = []
    for prefix, part in module.named_modules():
        owned = {"_parameters", "_buffers", "_modules"}
        attributes = {name: value for name, value in vars(part).items() if name not in owned}
        for kind in type(part).__mro__:
            if issubclass(kind, nn.Module) and kind is not nn.Module:
                attributes |= vars(kind)
        for name, value in attributes.items():
            values = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            )
            if any(isinstance(item, Tensor) for item in values):
                found.append(".".join(filter(None, (prefix, name))))
    return found


def s3_modes(bench: Bench, subject: Subject) -> Iterator[Result]:
    """Training and evaluation are one function without dropout; with it, evaluation stays.

    That dropout changes training is a line of its own, and the only one that does not fail: no protocol of ours drops
    out attention weights, but whoever trains with dropout must see that it would be ignored or refused.
    """
    line = Line("S3", "training and evaluation", subject.level, "the same without dropout")
    shape = bench.some_shapes(subject, least=7)[-1]
    x = subject.draw(BATCH, *shape, seed=3)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(5)
        module = _fresh(bench, subject, seed=5)
        trained = subject.run(x, module.train())
        # After the training pass, so that projections redrawn for training are the same in both.
        line.see(describe(x, "without dropout"), gap(trained, subject.run(x, module.eval())), TOLERANCE)
        dropped = _fresh(bench, subject, seed=6, dropout=0.5)
        dropped.load_state_dict(subject.module.state_dict())
        error = gap(subject.run(x, dropped), subject.run(x))
        line.see(describe(x, "evaluation at dropout 0.5"), error, TOLERANCE)
        dropout = Line("S3", "dropout", subject.level, "changes what is trained")
        reason = "the mechanism ignores dropout: build it with dropout=0"
        refused = False
        try:
            difference = gap(subject.run(x, dropped.train()), subject.run(x, dropped.eval()))
            dropout.hold(describe(x), difference > 1e-3, "dropout 0.5 changes nothing in training")
        except Unsupported as refusal:
            refused, reason = True, refusal.reason
            dropout.hold(describe(x), False, "dropout 0.5 is refused")
    yield line.result()
    found = dropout.result()
    if found.status is Status.FAIL:
        found = replace(found, status=Status.NOT_APPLICABLE, reason=reason)
    yield found
    if subject.level == "op" and bench.card.linear_in_values and not refused:
        yield _dropout_law(bench, subject)


def _dropout_law(bench: Bench, subject: Subject) -> Result:
    """Dropout keeps the mean, E[out] = out in evaluation, and its gradient is that of the outputs that it left.

    The mean is over 512 draws, as the slope c of mean = c out over all elements: one weight scatters by
    (p / (1 - p))^(1/2) = 0.65 of itself, so c by less than 0.03, and a wrong factor or a mask upside down (p = 0.3 for
    0.7) moves it by 0.4 and more. The gradient is held to a central difference with the same draws: error of the order
    of the step squared, 1e-10, and of rounding over the step, 1e-11, on values of order ten. Where the derivative is
    another already in evaluation (a statistic that is detached on purpose) there is nothing to hold it to.
    """
    line = Line("S3", "law of dropout", subject.level, "keeps the mean, and its gradient is right")
    module = _fresh(bench, subject, seed=6, dropout=0.3)
    module.load_state_dict(subject.module.state_dict())
    x = subject.draw(1, 7, 7, seed=7)
    many = x.map(lambda tensor: tensor.expand(512, *tensor.shape[1:]).contiguous())
    step, direction = 1e-5, subject.draw(1, 7, 7, seed=8)
    with torch.random.fork_rng(devices=[]):
        with torch.no_grad():
            torch.manual_seed(7)
            mean, out = subject.run(many, module.train()).mean(0, keepdim=True), subject.run(x)
        slope = float((mean * out).sum() / out.square().sum())
        line.see(describe(x, "slope of the mean"), abs(slope - 1), 0.15)

        def total(sign: float) -> Tensor:
            torch.manual_seed(8)
            moved = [a + sign * step * b for a, b in zip(leaves.tensors, direction.tensors, strict=True)]
            return subject.run(replace(x, q=moved[0], k=moved[1], v=moved[2]), module).square().sum()

        def derivatives() -> tuple[float, float]:
            """Along the direction: by autograd, by a central difference."""
            found = torch.autograd.grad(total(0.0), leaves.tensors, allow_unused=True)
            along = sum(float((g * b).sum()) for g, b in zip(found, direction.tensors, strict=True) if g is not None)
            with torch.no_grad():
                return along, float(total(1.0) - total(-1.0)) / (2 * step)

        leaves = x.map(lambda tensor: tensor.detach().requires_grad_())
        module.eval()
        plain, expected = derivatives()
        if abs(plain - expected) <= 1e-6 * max(1.0, abs(expected)):
            module.train()
            along, expected = derivatives()
            line.see(describe(x, "derivative"), abs(along - expected), 1e-6 * max(1.0, abs(expected)))
    return line.result()


def s4_types(bench: Bench, subject: Subject) -> Iterator[Result]:
    line = Line("S4", "types", subject.level, "shape and dtype of the output, autocast")
    shape = bench.some_shapes(subject, least=3)[0]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = subject.draw(BATCH, *shape, seed=4).masked(ragged(BATCH, shape[1])).to(dtype)
        with torch.no_grad():
            out = subject.run(x, subject.copy(dtype))
        line.hold(str(dtype), out.dtype is dtype, f"the output is {out.dtype}")
        line.hold(str(dtype), out.shape == x.q.shape, f"the output has shape {list(out.shape)}")
    if subject.level == "layer":
        single = subject.copy(torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = subject.draw(BATCH, *shape, seed=4).to(torch.float32)
            out = subject.run(x, single)
        out.float().sum().backward()
        gradients = [parameter.grad for parameter in single.parameters() if parameter.grad is not None]
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in [out, *gradients])
        line.hold("bfloat16 autocast", finite, "an output or a gradient is not finite")
    yield line.result()


def s5_gradients(bench: Bench, subject: Subject) -> Iterator[Result]:
    """Every parameter has a gradient: zero may be right (a bias of the keys under a softmax), none is a dead weight."""
    line = Line("S5", "gradients", subject.level, "finite, and one for every parameter")
    shape = bench.some_shapes(subject, least=7)[-1]
    parameters = {name: p for name, p in subject.module.named_parameters() if p.requires_grad}
    if not parameters:
        reason = "the core has no parameters" if subject.level == "op" else "the layer has no parameters"
        yield Result("S5", line.title, subject.level, line.what, Status.NOT_APPLICABLE, reason=reason)
        return
    out = subject.run(subject.draw(BATCH, *shape, seed=5))
    total = (out * torch.linspace(-1, 1, out.shape[-1], dtype=out.dtype)).sum()
    found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    for name, gradient in zip(parameters, found, strict=True):
        line.hold(name, gradient is not None, "the parameter does not reach the output")
        line.hold(name, gradient is None or bool(torch.isfinite(gradient).all()), "the gradient is not finite")
    yield line.result()


def s6_counts(bench: Bench, subject: Subject) -> Iterator[Result]:
    yield _flops(bench, subject)
    counts = Line("S6", "counts", subject.level, "inputs that are too long or misshapen are refused")
    if subject.level == "layer":
        longest = bench.layer.module.max_length
        long = subject.draw(1, longest + 1, 3 if bench.pattern.is_cross else longest + 1, seed=6)
        short = subject.draw(2, 5, 5, seed=6)
        counts.hold("one token too many", _refused(subject, long), "a length over max_length is accepted")
        badly = short.masked(torch.zeros(2, 6, dtype=torch.bool))
        counts.hold("a longer mask", _refused(subject, badly), "a mask of another length is accepted")
        floating = short.masked(torch.zeros(2, 5))
        counts.hold("a floating mask", _refused(subject, floating), "a mask that is not boolean is accepted")
        yield counts.result()
    fixed = Line("S6", "fixed length", subject.level, "shapes of the parameters do not depend on the maximal lengths")
    shapes = {name: tuple(parameter.shape) for name, parameter in subject.module.named_parameters()}
    longer = _fresh(bench, subject, seed=7, longer=16)
    same = shapes == {name: tuple(parameter.shape) for name, parameter in longer.named_parameters()}
    fixed.hold("16 longer", same, "they do")
    if not bench.card.fixed_length:
        yield fixed.result()
    else:
        yield fixed.excused("fixed_length", "card: parameters are tied to the maximal length")


def _flops(bench: Bench, subject: Subject) -> Result:
    line = Line("S6", "flops", subject.level, "the analytic count is one, and linear in the batch")
    try:
        flops = [subject.module.flops(batch, *shape) for shape in bench.shapes for batch in (1, 2)]
    except NotImplementedError:
        reason = "the mechanism gives no analytic count; its cells of work stay empty"
        return Result("S6", line.title, subject.level, line.what, Status.NOT_APPLICABLE, reason=reason)
    line.hold("every shape", all(type(count) is int and count >= 0 for count in flops), "flops are no count")
    line.hold("every shape", flops[1::2] == [2 * count for count in flops[::2]], "flops are not linear in the batch")
    return line.result()


def _refused(subject: Subject, x: object) -> bool:
    try:
        with torch.no_grad():
            subject.run(x)  # type: ignore[arg-type]
    except ValueError:
        return True
    return False
