"""Named, versioned protocols: which folder a record belongs to.

A record made with a protocol-owned key overridden does not belong to the protocol: it goes to ``quick+<hash>``, where
the hash is of what was overridden, and is shown apart. A part of a protocol's grid (one length of it, say) does.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from cab.errors import UserError
from cab.schema import Protocol

if TYPE_CHECKING:
    from cab.compose import Composer

ADHOC = "adhoc"
# What a run writes to, beside its folder itself.
WRITTEN = ("records", "claims", "manifests", "units", "checkpoints", "cards")


def effective_name(protocol: Protocol, overridden: Mapping[str, Any]) -> str:
    """``quick``, or ``quick+1a2b3c`` where owned keys were overridden; ``adhoc`` owns nothing."""
    if protocol.name == ADHOC or not overridden:
        return protocol.name
    text = json.dumps(dict(overridden), sort_keys=True, default=str)
    return f"{protocol.name}+{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def recorded_name(
    composer: Composer,
    verb: str,
    config: Any,
    overrides: Sequence[str],
    *,
    owned: Sequence[str],
    parts: Sequence[str] = (),
) -> str:
    """The name under which a verb's records go.

    Args:
        config: the verb's, as its dataclass, with a ``protocol``.
        overrides: the command line's.
        owned: keys that have to be what the protocol says.
        parts: keys with lists, any part of which belongs to the protocol.
    """
    return effective_name(config.protocol, changed(composer, verb, config, overrides, "protocol", owned, parts))


def changed(
    composer: Composer,
    verb: str,
    config: Any,
    overrides: Sequence[str],
    group: str,
    owned: Sequence[str],
    parts: Sequence[str] = (),
) -> dict[str, Any]:
    """What of a verb's config is not as the chosen config of ``group`` says; arguments as :func:`recorded_name`."""
    choice = [word for word in overrides if word.startswith(f"{group}=")]
    frozen = OmegaConf.to_object(composer.compose(verb, choice))
    found = {}
    for key in (*owned, *parts):
        given, said = _plain(getattr(config, key)), _plain(getattr(frozen, key))
        if given != said and not (key in parts and set(given) <= set(said)):
            found[key] = given
    return found


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def folder(results: str, protocol: str, hardware: str) -> Path:
    """``<results>/<protocol>/<hardware>``."""
    return Path(results).expanduser() / protocol / hardware


def existing(key: str, given: str) -> Path:
    """The folder of one protocol on one machine that ``key`` names; :class:`UserError` where it is none."""
    found = Path(given).expanduser()
    if not found.is_dir():
        raise UserError(f"{key}={given!r} is not a folder; it is one <results>/<protocol>/<hardware>")
    return found


def require_writable(path: Path) -> None:
    """Raises :class:`UserError`, before anything is computed, where records could not be written."""
    place = path
    try:
        path.mkdir(parents=True, exist_ok=True)
        for place in (path, *(path / name for name in WRITTEN)):
            if place.exists():
                probe = place / f".writable.{os.getpid()}"
                probe.write_bytes(b"")
                probe.unlink()
    except OSError as error:
        raise UserError(
            f"results folder {str(place)!r} cannot be written ({error.strerror}): give another with results=DIR"
        ) from error
