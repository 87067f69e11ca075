"""Certificates on file: kept beside the records, and remade when what they depend on has changed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from attention_zoo.conformance import Certificate, Mark, Oracle, certify
from attention_zoo.contract import Pattern, Support
from cab.record import Status
from cab.settings import Setting
from cab.source_hash import source_hash
from tasks.whole_file import write_whole

SEES_THE_FUTURE = "sees the future: causal in the values only"


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
    content = json.dumps({"setting": setting.name, **made.to_json()}, indent=1)
    write_whole(certificate_path(setting, folder), content.encode())
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


def run_refusal(setting: Setting, pattern: Pattern, folder: Path) -> tuple[Status, str] | None:
    """Why a run of a setting could not enter a board; None where it can, or has no form for the pattern at all."""
    support = setting.card.supports.get(pattern)
    if support is None:
        return None
    if support is Support.VALUE_CAUSAL:
        return Status.UNSUPPORTED, SEES_THE_FUTURE
    passed, reason = gate(certificate(setting, folder), pattern)
    return None if passed else (Status.FAILED_CERTIFICATE, reason)


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
        return False, SEES_THE_FUTURE
    return True, ""
