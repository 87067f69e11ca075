"""What a benchmark of the harness itself found, kept beside the machine that it was found on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cab.measure.environment import describe, hardware_id
from tasks.whole_file import write_whole


def place_of(folder: Path) -> Path:
    """``folder/<hardware>`` of this CPU, made where it is not there."""
    place = folder / hardware_id("cpu")
    place.mkdir(parents=True, exist_ok=True)
    return place


def keep(path: Path, command: str, content: Mapping[str, Any]) -> None:
    """Writes ``content`` as JSON, with the command that made it and the machine, but not the machine's name."""
    environment = {key: value for key, value in describe("cpu").items() if key != "host"}
    whole = {**content, "command": command, "environment": environment}
    write_whole(path, (json.dumps(whole, indent=1, default=str) + "\n").encode())
