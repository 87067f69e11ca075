"""An installed wheel works from any directory, without the checkout: ``cab list`` and a run of 20 steps."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def call(*command: object, cwd: Path, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and the packages of this one but not its editable install."""
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy, since setuptools leaves build/ beside what it builds.
    source = folder / "source"
    tracked = call("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines()
    for name in tracked:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    call(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, source, cwd=folder)
    wheel = next(folder.glob("*.whl"))
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = Path(call(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    # A path in a .pth file is not searched for .pth files itself, so our editable install stays out.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    call(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    return folder / "venv" / "bin"


def test_list_shows_settings_and_tasks_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    told = call(installed / "cab", "list", cwd=tmp_path)
    where = call(installed / "python", "-c", "import cab, tasks, attention_zoo; print(cab.__file__)", cwd=tmp_path)
    assert str(ROOT) not in where
    for name in ("performer", "smyrf", "recall", "summarization"):
        assert name in told


def test_a_run_of_twenty_steps_records_into_the_working_folder(installed: Path, tmp_path: Path) -> None:
    call(installed / "cab", "run", "task=recall", "attention=linear", "trainer.max_steps=20", cwd=tmp_path)
    files = list(tmp_path.glob("results/adhoc/*/records/*.jsonl"))
    assert len(files) == 1
    rows = [json.loads(line) for line in files[0].read_text().splitlines() if line]
    measured = {row["metric"]: row["value"] for row in rows if row["setting"] == "linear"}
    assert {"accuracy", "steps_per_s", "tokens_per_s", "peak_extra_bytes", "parameters"} <= set(measured)
    assert 0 <= measured["accuracy"] <= 1
