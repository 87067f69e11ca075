"""The certificate: what was tested of one attention with one set of options, pattern by pattern, and how it ended."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from attention_zoo.contract import Card, Pattern, Support

FORMAT = 1


class Status(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    NOT_APPLICABLE = "not_applicable"


class Mark(StrEnum):
    """What a certificate says of one pattern.

    * ``certified``: every test that applies passed, the dense oracle among them.
    * ``no_oracle``: the same, but no oracle is shipped to compare with.
    * ``value_causal``: as claimed, causal in the values only: T5 passed, and T3 failed as it must.
    * ``failed``: a test failed; what the card claims does not hold.
    * ``unsupported``: the card claims no such form, and building one is refused.
    """

    CERTIFIED = "certified"
    NO_ORACLE = "no_oracle"
    VALUE_CAUSAL = "value_causal"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True)
class Result:
    """One line of a certificate.

    Attributes:
        test: ``T1`` to ``T14`` (the shared tests), ``S1`` to ``S6`` (structure: state, randomness, types, counts).
        title: of the test.
        level: ``op`` (the core on projected heads) or ``layer``.
        case: which part of the test, and the inputs that it ran on.
        status: how it ended.
        detail: the error and its tolerance, or what went wrong.
        reason: why the test does not apply: the card's typed property, the pattern or the missing oracle.
        declares: the card's property that excuses the mechanism from this line, where there is one ...
        contradicted: ... and whether its opposite was seen: a declared "not linear" that behaved linearly throughout.
    """

    test: str
    title: str
    level: str
    case: str
    status: Status
    detail: str = ""
    reason: str = ""
    declares: str = ""
    contradicted: bool = False

    def __str__(self) -> str:
        text = f"{self.test:<4}{self.level:<6}{self.status.value.replace('_', ' '):<15}{self.title}: {self.case}"
        tail = "; ".join(part for part in (self.reason, self.detail) if part)
        return f"{text} ({tail})" if tail else text


@dataclass(frozen=True)
class PatternCertificate:
    """The part on one pattern. ``support`` is None, and ``reason`` the card's, where the pattern is unsupported."""

    pattern: Pattern
    support: Support | None
    oracle: bool
    results: tuple[Result, ...]
    reason: str = ""

    @property
    def failures(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.status is Status.FAIL)

    @property
    def passed(self) -> bool:
        """Whether nothing that the card says of this pattern was refuted."""
        return not self.failures

    @property
    def mark(self) -> Mark:
        if self.failures:
            return Mark.FAILED
        if self.support is None:
            return Mark.UNSUPPORTED
        if self.support is Support.VALUE_CAUSAL:
            return Mark.VALUE_CAUSAL
        return Mark.CERTIFIED if self.oracle else Mark.NO_ORACLE

    @property
    def failed_tests(self) -> tuple[str, ...]:
        """Names of the tests with a failed line, in order, once each."""
        return tuple(dict.fromkeys(result.test for result in self.failures))


@dataclass(frozen=True)
class Certificate:
    """What :func:`attention_zoo.conformance.certify` found; it holds for these ``options`` and this torch.

    Attributes:
        attention: name on the card.
        target: dotted path of the layer class.
        options: with which it was built (the defaults of the others are those of the class).
        card: every field of the card, as plain values.
        torch: version.
        patterns: one entry per pattern asked for.
        duration_s: wall time of the tests.
        key: what the certificate depends on, as its maker chose to say it (empty: nothing said).
    """

    attention: str
    target: str
    options: Mapping[str, Any]
    card: Mapping[str, Any]
    torch: str
    patterns: Mapping[Pattern, PatternCertificate]
    duration_s: float = 0.0
    key: str = ""

    @property
    def passed(self) -> bool:
        return all(part.passed for part in self.patterns.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values, with ``passed`` and ``mark`` spelled out for readers that are not this class."""
        parts = {}
        for pattern, part in self.patterns.items():
            parts[pattern.value] = {
                "support": part.support.value if part.support else None,
                "reason": part.reason,
                "oracle": part.oracle,
                "passed": part.passed,
                "mark": part.mark.value,
                "results": [plain(dataclasses.asdict(result)) for result in part.results],
            }
        return {
            "format": FORMAT,
            "attention": self.attention,
            "target": self.target,
            "options": plain(self.options),
            "card": plain(self.card),
            "torch": self.torch,
            "passed": self.passed,
            "duration_s": self.duration_s,
            "key": self.key,
            "patterns": parts,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Certificate:
        """The inverse of :meth:`to_json`; ``ValueError``, ``KeyError`` or ``TypeError`` on what is none."""
        if data["format"] != FORMAT:
            raise ValueError(f"certificate has format {data['format']!r}, expected {FORMAT}")
        patterns = {}
        for name, part in data["patterns"].items():
            patterns[Pattern(name)] = PatternCertificate(
                pattern=Pattern(name),
                support=Support(part["support"]) if part["support"] else None,
                oracle=bool(part["oracle"]),
                results=tuple(Result(**{**line, "status": Status(line["status"])}) for line in part["results"]),
                reason=part["reason"],
            )
        return cls(
            attention=data["attention"],
            target=data["target"],
            options=dict(data["options"]),
            card=dict(data["card"]),
            torch=data["torch"],
            patterns=patterns,
            duration_s=float(data["duration_s"]),
            key=data["key"],
        )

    def __str__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in self.options.items())
        lines = [f"{self.attention} ({self.target}{'; ' + options if options else ''}), torch {self.torch}"]
        for pattern, part in self.patterns.items():
            claim = part.support.value if part.support else f"not claimed: {part.reason}"
            lines.append(f"\n{pattern.value}: {part.mark.value.replace('_', ' ')} ({claim})")
            lines += [f"  {result}" for result in part.results]
        return "\n".join(lines)


def plain(value: Any) -> Any:
    """``value`` in the types of JSON; sets are sorted, keys become strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(plain(item) for item in value)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, StrEnum):
        return value.value
    if value is None or isinstance(value, str | bool | int | float):
        return value
    return str(value)


def card_fields(card: Card) -> dict[str, Any]:
    """Every field of a card, as plain values."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(card):
        value = getattr(card, field.name)
        found[field.name] = plain(
            {inner.name: getattr(value, inner.name) for inner in dataclasses.fields(value)}
            if dataclasses.is_dataclass(value)
            else value
        )
    return found
