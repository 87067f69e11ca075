"""What a trial asks: the first line that fails on the certificates of a mechanism, as ``cab check`` would make them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Options = Mapping[str, Any]


class Failure(NamedTuple):
    """The line with what it is about, and whether the mechanism raised there instead of answering wrongly."""

    text: str
    raised: bool


def first_failure(cases: Iterable[tuple[str, Options]]) -> Failure | None:
    """For (mechanism, options) after (mechanism, options), pattern by pattern; None where all are certified."""
    from attention_zoo import registry
    from attention_zoo.conformance import Oracle, Result, Status
    from attention_zoo.conformance.certify import defaults, judge_excuses, lines, options_exclude
    from attention_zoo.contract import Pattern

    for name, options in cases:
        kind = registry.mechanism(name)
        oracle = Oracle.find(kind)
        found: dict[Pattern, list[Result]] = {}
        for pattern in kind.card.supports:
            if options_exclude(kind, options, pattern):
                continue
            found[pattern] = []
            for line in lines(kind, options, pattern, oracle):
                if line.status is Status.FAIL:
                    return _said(name, options, pattern, line)
                found[pattern].append(line)
        if {**defaults(kind), **options} == defaults(kind):
            judge_excuses(found)
        for pattern, results in found.items():
            for line in results:
                if line.status is Status.FAIL:
                    return _said(name, options, pattern, line)
    return None


def _said(name: str, options: Options, pattern: Any, line: Any) -> Failure:
    from attention_zoo import registry
    from attention_zoo.conformance.certify import defaults

    usual = defaults(registry.mechanism(name))
    own = ", ".join(f"{option}={value}" for option, value in options.items() if usual.get(option) != value)
    text = f"{name}{f'[{own}]' if own else ''} {pattern.short} {' '.join(str(line).split())}"
    return Failure(text, line.detail.startswith("raised "))
