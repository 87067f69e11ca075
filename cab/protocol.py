"""Named, versioned protocols: which folder a record belongs to.

A record made with a protocol-owned key overridden does not belong to the protocol: it goes to ``quick+<hash>``, where
the hash is of what was overridden, and is shown apart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cab.errors import UserError
from cab.schema import Protocol

ADHOC = "adhoc"


def effective_name(protocol: Protocol, overridden: Mapping[str, Any]) -> str:
    """``quick``, or ``quick+1a2b3c`` where owned keys were overridden; ``adhoc`` owns nothing."""
    if protocol.name == ADHOC or not overridden:
        return protocol.name
    text = json.dumps(dict(overridden), sort_keys=True, default=str)
    return f"{protocol.name}+{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def folder(results: str, protocol: str, hardware: str) -> Path:
    """``<results>/<protocol>/<hardware>``."""
    return Path(results).expanduser() / protocol / hardware


def require_writable(path: Path) -> None:
    """Raises :class:`UserError`, before anything is computed, where records could not be written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"results folder {str(path)!r} cannot be written ({error.strerror}): give another with results=DIR"
        ) from error
