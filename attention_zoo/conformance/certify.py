"""Runs every test on one attention, pattern by pattern, and judges what its card excuses it from."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from attention_zoo.conformance import against_oracle, causality, invariance, structure
from attention_zoo.conformance.certificate import Certificate, PatternCertificate, Result, Status, card_fields, plain
from attention_zoo.conformance.subject import HEAD_DIM, HEADS, Bench, Oracle, Subject, defaults
from attention_zoo.contract import Attention, HeadwiseAttention, Pattern, Unsupported
from attention_zoo.registry import check_options

Test = Callable[[Bench, Subject], Iterator[Result]]

TESTS: Mapping[str, Test] = {
    "T1": against_oracle.t1_oracle,
    "T2": against_oracle.t2_collapse,
    "T3": causality.t3_leak,
    "T4": causality.t4_prefix,
    "T5": causality.t5_value_leak,
    "T6": causality.t6_influence,
    "T7": invariance.t7_padding_content,
    "T8": invariance.t8_trimmed,
    "T9": invariance.t9_batch,
    "T10": invariance.t10_permutation,
    "T11": causality.t11_incremental,
    "T12": against_oracle.t12_row_stochastic,
    "T13": invariance.t13_large_logits,
    "T14": invariance.t14_nothing_visible,
    "S1": structure.s1_determinism,
    "S2": structure.s2_state,
    "S3": structure.s3_modes,
    "S4": structure.s4_types,
    "S5": structure.s5_gradients,
    "S6": structure.s6_counts,
}

DECLARED = {
    "linear_in_values": "declared not linear in the values, but it is in every case and pattern",
    "rows_sum_to_one": "declared without rows that sum to one, but they do in every case and pattern",
    "vanishing_rows": "declared with rows that carry no weight, but none was seen in any pattern",
    "permutation_equivariant": "declared order dependent, but no order dependence was seen in any pattern",
    "trimmed_equality": "declared without trimmed equality, but a padded sample equals the cut one throughout",
    "softmax_logits": "declared no softmax of logits, but a shift of the logits cancels in every case and pattern",
    "fixed_length": "declared with parameters tied to the length, but their shapes are not",
}


def certify(
    kind: type[Attention],
    *,
    options: Mapping[str, Any] | None = None,
    patterns: Iterable[Pattern] | None = None,
    oracle: Oracle | None = None,
    progress: Callable[[Pattern], None] | None = None,
) -> Certificate:
    """Tests T1 to T14 and S1 to S6 of an attention in each pattern, and what came of them.

    The structural tests run in float64, at lengths 1, 2, 3, odd, prime, past two blocks and no multiple of any, with
    ragged padding and an empty sample. The result holds for these options and this torch. Time: seconds per pattern.

    Args:
        kind: the layer class.
        options: of its constructor; a wrong one is an :class:`~attention_zoo.registry.UnknownName`.
        patterns: to be tested; None for all four. An unsupported one is tested to be refused.
        oracle: to compare with; None for the module ``reference`` beside the mechanism's own, if there is one.
        progress: called with each pattern before its tests.
    """
    options = dict(options or {})
    check_options(kind, options)
    asked = list(Pattern) if patterns is None else [Pattern(pattern) for pattern in patterns]
    oracle = oracle or Oracle.find(kind)
    started = time.perf_counter()
    found: dict[Pattern, list[Result]] = {}
    excluded: dict[Pattern, str] = {}
    for pattern in asked:
        if progress is not None:
            progress(pattern)
        if reason := options_exclude(kind, options, pattern):
            excluded[pattern] = reason
            found[pattern] = [Result("S6", "refusal", "layer", "options", Status.PASS, "refused", reason)]
        else:
            found[pattern] = list(lines(kind, options, pattern, oracle))
    # An excuse is judged over all supported patterns, since an order may matter in one and not in another, and with the
    # default options, of which the card speaks: others may make a mechanism simpler than its card.
    if _standard(kind, options) and set(kind.card.supports) <= set(asked):
        judge_excuses(found)
    parts = {
        pattern: PatternCertificate(
            pattern,
            None if pattern in excluded else kind.card.supports.get(pattern),
            oracle is not None,
            tuple(results),
            excluded.get(pattern, kind.card.unsupported.get(pattern, "")),
        )
        for pattern, results in found.items()
    }
    return Certificate(
        attention=kind.card.name,
        target=f"{kind.__module__}.{kind.__qualname__}",
        options=plain(options),
        card=card_fields(kind.card),
        torch=torch.__version__,
        patterns=parts,
        duration_s=time.perf_counter() - started,
    )


def _standard(kind: type[Attention], options: Mapping[str, Any]) -> bool:
    return {**defaults(kind), **options} == defaults(kind)


def options_exclude(kind: type[Attention], options: Mapping[str, Any], pattern: Pattern) -> str:
    """Why these options, unlike the default ones, have no form in a pattern that the card claims; else empty."""
    if pattern not in kind.card.supports or _standard(kind, options):
        return ""
    try:
        kind(HEADS * HEAD_DIM, HEADS, pattern, max_length=16, **options)
    except Unsupported as refusal:
        return refusal.reason
    except Exception:  # noqa: BLE001 - whatever else a constructor raises becomes a failed line, with its text
        return ""
    return ""


def lines(
    kind: type[Attention], options: Mapping[str, Any], pattern: Pattern, oracle: Oracle | None
) -> Iterator[Result]:
    """The lines of one pattern as they are found, before excuses are judged; who looks for one failure can stop."""
    if pattern not in kind.card.supports:
        yield _refusal(kind, options, pattern)
        return
    if not issubclass(kind, HeadwiseAttention) and not kind.card.no_core_reason:
        text = "it has no op level, and the card gives no no_core_reason"
        yield Result("S6", "counts", "layer", "the card", Status.FAIL, text)
    try:
        bench = Bench.build(kind, options, pattern, oracle)
    except Exception as error:  # noqa: BLE001 - code under test may raise anything; that is a finding, not our crash
        yield Result("S6", "counts", "layer", "construction", Status.FAIL, _raised(error))
        return
    for name, test in TESTS.items():
        for subject in bench.subjects:
            try:
                yield from test(bench, subject)
            except Exception as error:  # noqa: BLE001 - as above
                yield Result(name, test.__name__, subject.level, "ran", Status.FAIL, _raised(error))


def _raised(error: Exception) -> str:
    return f"raised {type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _refusal(kind: type[Attention], options: Mapping[str, Any], pattern: Pattern) -> Result:
    """What is not supported raises Unsupported at construction."""
    reason = kind.card.unsupported[pattern]
    title, case = "refusal", "construction"
    try:
        kind(HEADS * HEAD_DIM, HEADS, pattern, max_length=16, **options)
    except Unsupported:
        return Result("S6", title, "layer", case, Status.PASS, "refused", reason)
    except Exception as error:  # noqa: BLE001 - as above
        return Result("S6", title, "layer", case, Status.FAIL, f"not refused: {_raised(error)}", reason)
    return Result("S6", title, "layer", case, Status.FAIL, "not refused, but built", reason)


def judge_excuses(found: dict[Pattern, list[Result]]) -> None:
    """An excuse whose opposite held in every line that names it was declared falsely: each such line fails."""
    excused = [result for results in found.values() for result in results if result.declares]
    for name in {result.declares for result in excused}:
        if all(result.contradicted for result in excused if result.declares == name):
            for pattern, results in found.items():
                found[pattern] = [_refuted(result) if result.declares == name else result for result in results]


def _refuted(result: Result) -> Result:
    return dataclasses.replace(result, status=Status.FAIL, detail=DECLARED[result.declares])
