"""``cab efficiency``: resolves the grid, holds the gate of certificates before it, and measures into the store."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from attention_zoo.contract import Pattern
from cab import device as devices
from cab import protocol
from cab.certificates import certificate, gate
from cab.compose import Composer
from cab.efficiency import Summary, efficiency
from cab.errors import blame_user, unknown
from cab.measure.environment import hardware_id
from cab.records import RecordStore
from cab.report.crossings import fit_named
from cab.schema import Efficiency
from cab.settings import Setting, by_implementation


def patterns(wanted: list[str]) -> list[Pattern]:
    """The patterns of a list of names; ``all`` means the four."""
    allowed = [str(pattern) for pattern in Pattern]
    for name in wanted:
        if name != "all" and name not in allowed:
            raise unknown("pattern", name, ["all", *allowed])
    return [pattern for pattern in Pattern if "all" in wanted or str(pattern) in wanted]


def certificate_gate(folder: Path) -> Callable[[Setting, Pattern], str | None]:
    """Why a setting may not be measured in a pattern, from its certificate in ``folder`` (made where it is missing)."""

    def refusal(setting: Setting, pattern: Pattern) -> str | None:
        passed, reason = gate(certificate(setting, folder), pattern)
        return None if passed else reason

    return refusal


def folder_of(config: Efficiency) -> Path:
    """Where the records of a config go."""
    return protocol.folder(config.results, config.protocol.name, hardware_id(devices.resolve_device(config.device)))


def measure_costs(composer: Composer, config: Efficiency, *, on_cell: Callable[[], None] = lambda: None) -> Summary:
    """The grid of a config, measured where it is missing."""
    device = devices.resolve_device(config.device)
    devices.resolve_dtype(config.dtype)
    threads = devices.resolve_threads(config.threads)
    fit_named(config.fit)
    with blame_user():
        settings, without = by_implementation(composer.settings(config.attentions), config.impl)
    for impl, names in without.items():
        print(f"impl {impl}: not offered by {', '.join(names)}, left out", file=sys.stderr, flush=True)
    baselines = {name: composer.settings([name])[0] for name in config.baselines}
    store = RecordStore(folder_of(config))
    protocol.require_writable(store.folder)
    resolved = replace(
        config, device=device, threads=threads, patterns=[str(pattern) for pattern in patterns(config.patterns)]
    )
    return efficiency(
        resolved, settings, store, baselines=baselines, gate=certificate_gate(store.folder), on_cell=on_cell
    )
