"""``cab check``: certificates of settings, kept beside the records and remade when what they depend on has changed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from attention_zoo.conformance import Certificate, Mark, Oracle, certify
from attention_zoo.contract import Pattern
from cab import device as devices
from cab import protocol
from cab.errors import UserError, unknown
from cab.measure.environment import hardware_id
from cab.schema import Check
from cab.settings import Setting
from cab.source_hash import source_hash

_SHOWN = {
    Mark.CERTIFIED: "certified",
    Mark.NO_ORACLE: "no oracle",
    Mark.VALUE_CAUSAL: "value-causal",
    Mark.FAILED: "FAILED",
    Mark.UNSUPPORTED: "-",
}


def certificate_key(setting: Setting) -> str:
    """What a certificate depends on: the code of mechanism, oracle and tests, the options, torch and Python."""
    kind = setting.kind
    code = source_hash([kind.__module__, Oracle.module_name(kind), "attention_zoo.conformance"])
    options = json.dumps(dict(setting.options), sort_keys=True, default=str)
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return hashlib.sha256("\n".join((setting.target, code, options, torch.__version__, python)).encode()).hexdigest()[
        :16
    ]


def certificate_path(setting: Setting, folder: Path) -> Path:
    """``<folder>/certificates/<setting>.json``."""
    return folder / "certificates" / f"{re.sub(r'[^A-Za-z0-9.,=_+-]', '_', setting.name)}.json"


def stored(setting: Setting, folder: Path) -> Certificate | None:
    """The certificate on file, unless it is missing, unreadable or of other code, options or versions."""
    try:
        found = Certificate.from_json(json.loads(certificate_path(setting, folder).read_bytes()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if found.key == certificate_key(setting) else None


def certificate(setting: Setting, folder: Path, *, progress: Callable[[Pattern], None] | None = None) -> Certificate:
    """The certificate of a setting over all patterns: the one stored in ``folder``, or a new one, stored there.

    The file is the certificate's JSON with the name of the ``setting`` in front; it appears whole or not at all.
    """
    found = stored(setting, folder)
    if found is not None:
        return found
    with _one_thread():
        made = certify(setting.kind, options=setting.options, progress=progress)
    made = dataclasses.replace(made, key=certificate_key(setting))
    _write(certificate_path(setting, folder), json.dumps({"setting": setting.name, **made.to_json()}, indent=1))
    return made


@contextmanager
def _one_thread() -> Iterator[None]:
    """The inputs are tiny: more threads would spend their time on waiting for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:  # Ctrl-C too must leave no half-written file behind; it goes on up
        Path(name).unlink(missing_ok=True)
        raise


def gate(made: Certificate, pattern: Pattern | str, *, quality: bool = False) -> tuple[bool, str]:
    """Whether a setting may enter a leaderboard in a pattern, and why not.

    A value-causal one may enter with its costs, never with its quality (``quality=True``): it sees the future.
    """
    part = made.patterns.get(Pattern(pattern))
    if part is None:
        return False, f"its certificate does not cover {pattern}"
    if part.mark is Mark.UNSUPPORTED:
        return False, part.reason
    if part.mark is Mark.FAILED:
        return False, f"failed {', '.join(part.failed_tests)} of its certificate"
    if part.mark is Mark.VALUE_CAUSAL and quality:
        return False, "sees the future: causal in the values only"
    return True, ""


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
