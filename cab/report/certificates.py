"""What a folder's certificates say of a setting in a pattern; the format is that of attention_zoo.conformance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Marks of attention_zoo.conformance with which a setting has a row, with the text and the meaning of each.
MARKS: dict[str, tuple[str, str]] = {
    "certified": ("certified", "every conformance test that applies passed, the dense oracle among them"),
    "no_oracle": ("no oracle", "every conformance test that applies passed; there is no oracle to compare with"),
    "value_causal": (
        "value-causal",
        "causal in the values only: hashing, sorting or selection sees the future, so quality is not comparable",
    ),
}
OTHER_MARKS: dict[str, tuple[str, str]] = {
    "failed": ("failed", "a conformance test failed: no row in this pattern"),
    "unsupported": ("unsupported", "the mechanism has no such form"),
}
SUPPORT = {"published": "published form", "extension": "our extension", "value_causal": "value-causal"}


@dataclass(frozen=True)
class Verdict:
    """A setting in a pattern: ``mark`` is a key of ``MARKS`` or ``OTHER_MARKS``, or None where nothing is certified."""

    setting: str
    pattern: str
    mark: str | None
    support: str | None
    reason: str
    counts: str = ""
    lines: tuple[str, ...] = ()

    @property
    def admitted(self) -> bool:
        """Whether the setting has a row in the pattern's table."""
        return self.mark in MARKS

    @property
    def value_causal(self) -> bool:
        return self.mark == "value_causal"


def verdict(certificates: Mapping[str, Mapping[str, Any]], setting: str, pattern: str) -> Verdict:
    """What the certificate of ``setting`` says of ``pattern``, else why there is none."""
    certificate = certificates.get(setting)
    if certificate is None:
        return Verdict(setting, pattern, None, None, "no certificate in this folder; `cab check` makes one")
    part = (certificate.get("patterns") or {}).get(pattern)
    unsupported = (card(certificates, setting).get("unsupported") or {}).get(pattern)
    if part is None:
        if unsupported:
            return Verdict(setting, pattern, "unsupported", None, str(unsupported))
        return Verdict(setting, pattern, None, None, "its certificate does not cover this pattern; see `cab check`")
    results = [result for result in part.get("results") or () if isinstance(result, Mapping)]
    mark = str(part.get("mark"))
    failed = list(dict.fromkeys(str(result.get("test")) for result in results if result.get("status") == "fail"))
    reason = str(part.get("reason") or unsupported or "")
    if mark == "failed":
        reason = f"conformance tests failed: {', '.join(failed)}" if failed else "conformance tests failed"
    return Verdict(setting, pattern, mark, part.get("support"), reason, _counts(results), tuple(map(_line, results)))


def card(certificates: Mapping[str, Mapping[str, Any]], setting: str) -> Mapping[str, Any]:
    """The mechanism's card as its certificate holds it; empty where there is none."""
    return certificates.get(setting, {}).get("card") or {}


def _counts(results: list[Mapping[str, Any]]) -> str:
    counts = {status: sum(result.get("status") == status for result in results) for status in ("pass", "fail")}
    rest = len(results) - sum(counts.values())
    parts = [f"{counts['pass']} passed", f"{counts['fail']} failed" if counts["fail"] else ""]
    parts.append(f"{rest} do not apply" if rest else "")
    return ", ".join(part for part in parts if part) if results else ""


def _line(result: Mapping[str, Any]) -> str:
    tail = "; ".join(str(result[key]) for key in ("reason", "detail") if result.get(key))
    status = str(result.get("status", "")).replace("_", " ")
    text = (
        f"{result.get('test')} {result.get('level', '')} {status}: {result.get('title', '')}, {result.get('case', '')}"
    )
    return f"{text} ({tail})" if tail else text
