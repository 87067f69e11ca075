"""Sample outputs of runs, which a person can look at or listen to: ``samples/<run key>/<name>`` beside the records."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath

from tasks.contract import Artifact
from tasks.whole_file import write_whole

FOLDER = "samples"


def check_names(artifacts: Sequence[Artifact]) -> None:
    """Raises ``ValueError`` where a name is no plain file name, or given twice."""
    names = [artifact.name for artifact in artifacts]
    for name in names:
        if PurePath(name).name != name or name.startswith(".") or names.count(name) > 1:
            raise ValueError(f"sample {name!r} is given twice or is no plain file name")


def write_samples(folder: Path, run_key: str, artifacts: Sequence[Artifact]) -> list[tuple[Path, str]]:
    """Writes each artifact under its name, whole or not at all; their files and media types."""
    here = folder / FOLDER / run_key
    return [(write_whole(here / each.name, each.content), each.media_type) for each in artifacts]


def sample_paths(folder: Path) -> dict[str, list[str]]:
    """By run key the samples of each run that has any, relative to ``folder``, sorted."""
    found: dict[str, list[str]] = {}
    for path in sorted((folder / FOLDER).glob("*/[!.]*")):
        found.setdefault(path.parent.name, []).append(path.relative_to(folder).as_posix())
    return found
