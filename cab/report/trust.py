"""Whose records a folder holds, and whether somebody here has run them again: what ``cab submit`` left beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTENT, VERIFICATION = "submission.json", "verification.json"


@dataclass(frozen=True)
class Trust:
    """Of a folder's records: ``own``, ``submitted`` by somebody, or ``verified`` by a run of ours."""

    level: str
    text: str


def trust(folder: Path) -> Trust:
    """Read from the files beside the records."""
    if not (folder / CONTENT).is_file():
        return Trust("own", "")
    name = json.loads((folder / CONTENT).read_text())["name"]
    if not (folder / VERIFICATION).is_file():
        return Trust("submitted", f"Submitted by {name}; not run again by us.")
    found: Mapping[str, Any] = json.loads((folder / VERIFICATION).read_text())
    said = f"{found['changed']} of {found['pairs']} values differ from those of {found['against']}"
    if found["verified"]:
        return Trust("verified", f"Submitted by {name}, and verified: {said} (95 % intervals that do not overlap).")
    if unproved := found.get("unproved"):
        said += f", and {unproved} have no counterpart or no interval"
    return Trust("submitted", f"Submitted by {name}; a run of ours does not bear it out: {said}.")
