"""Every launcher gives what the basic one gives: the same eight cells, the same values, each once."""

from pathlib import Path

import pytest
from swept import swept

LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"],
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_launcher_gives_the_records_of_the_basic_one(outside: Path, tmp_path: Path, name: str) -> None:
    assert swept(outside, tmp_path / "basic") == swept(outside, tmp_path / name, *LAUNCHERS[name])
