"""``cab check``: makes or reads the certificates of settings, and prints them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from attention_zoo.conformance import Certificate, Mark
from attention_zoo.contract import Pattern
from cab import device as devices
from cab import protocol
from cab.certificates import certificate, certificate_path, stored
from cab.errors import UserError, unknown
from cab.measure.environment import hardware_id
from cab.schema import Check
from cab.settings import Setting
from cab.support import proofs, write_matrix

_SHOWN = {
    Mark.CERTIFIED: "certified",
    Mark.NO_ORACLE: "no oracle",
    Mark.VALUE_CAUSAL: "value-causal",
    Mark.FAILED: "FAILED",
    Mark.UNSUPPORTED: "-",
}


def check(config: Check, settings: Sequence[Setting]) -> bool:
    """Makes or reads the certificates of ``settings``, prints them, and returns whether all hold.

    One setting is printed line by line; of several, a table and what failed.
    """
    patterns = _patterns(config)
    if config.device != "auto" and devices.resolve_device(config.device) != "cpu":
        raise UserError(f"device={config.device}: conformance is a property of the code and is checked on cpu")
    if config.dtype != "float32":
        raise UserError(f"dtype={config.dtype}: cab check always covers float64, float32 and bfloat16")
    devices.resolve_threads(config.threads)
    folder = protocol.folder(config.results, config.protocol, hardware_id("cpu"))
    console = Console(highlight=False, soft_wrap=True, markup=False)
    if config.dry_run:
        for setting in settings:
            state = "has its certificate" if stored(setting, folder) else "would be tested"
            console.print(f"{setting.name} {state}: {certificate_path(setting, folder)}")
        return True
    protocol.require_writable(folder)
    made = {setting.name: _made(setting, folder, n, len(settings), console) for n, setting in enumerate(settings, 1)}
    if len(made) == 1:
        (only,) = made.values()
        shown = {pattern: part for pattern, part in only.patterns.items() if pattern in patterns}
        console.print(f"\n{dataclasses.replace(only, patterns=shown)}")
    _print_table(console, made, patterns)
    failed = {
        name: [str(pattern) for pattern in patterns if not found.patterns[pattern].passed]
        for name, found in made.items()
    }
    failed = {name: where for name, where in failed.items() if where}
    for name, where in failed.items():
        for pattern in where:
            for line in made[name].patterns[Pattern(pattern)].failures:
                console.print(f"{name} {pattern}: {line}")
    console.print(f"\ncertificates: {folder / 'certificates'}")
    if config.matrix is not None:
        rows = [row for name, found in made.items() for row in proofs(name, found)]
        write_matrix(Path(config.matrix).expanduser(), rows)
    if failed:
        console.print("failed: " + "; ".join(f"{name} in {', '.join(where)}" for name, where in failed.items()))
    return not failed


def _patterns(config: Check) -> list[Pattern]:
    allowed = [str(pattern) for pattern in Pattern]
    for name in config.patterns:
        if name != "all" and name not in allowed:
            raise unknown("pattern", name, ["all", *allowed])
    return [pattern for pattern in Pattern if "all" in config.patterns or str(pattern) in config.patterns]


def _made(setting: Setting, folder: Path, number: int, total: int, console: Console) -> Certificate:
    begin = time.monotonic()
    known = stored(setting, folder) is not None
    made = certificate(setting, folder)
    how = "as stored" if known else f"{time.monotonic() - begin:.1f} s"
    lines = [result for part in made.patterns.values() for result in part.results]
    passed = sum(result.status.value == "pass" for result in lines)
    failed = sum(result.status.value == "fail" for result in lines)
    rest = len(lines) - passed - failed
    console.print(f"[{number}/{total}] {setting.name}: {passed} passed, {failed} failed, {rest} do not apply ({how})")
    return made


def _print_table(console: Console, made: dict[str, Certificate], patterns: Sequence[Pattern]) -> None:
    table = Table(title="certificates", title_justify="left")
    table.add_column("setting")
    for pattern in patterns:
        table.add_column(pattern.short)
    for name, found in made.items():
        cells = []
        for pattern in patterns:
            part = found.patterns[pattern]
            support = f" ({part.support.value})" if part.support and part.mark is Mark.CERTIFIED else ""
            failures = f" {', '.join(part.failed_tests)}" if part.failures else ""
            cells.append(f"{_SHOWN[part.mark]}{support}{failures}")
        table.add_row(name, *cells)
    console.print(table)
    for name, found in made.items():
        for pattern in patterns:
            if found.patterns[pattern].mark is Mark.UNSUPPORTED:
                console.print(f"{name} has no {pattern}: {found.patterns[pattern].reason}")
