"""Sweeps that are killed, fill the disk, or share a folder: nothing lost, nothing twice, the values of calm ones."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from cab.records import RecordStore, Status

GRID = ["task=first_token", "attention=linear,performer,sdpa", "pattern=causal_self,noncausal_self", "seed=1,2,3,4"]
CELLS = 24
WORKERS = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
VALUES = ("accuracy",)


def command(outside: Path, results: Path, *more: str, steps: int = 300) -> list[str]:
    fixed = ["threads=1", f"trainer.max_steps={steps}", "trainer.checkpoint_interval_s=0.3", f"results='{results}'"]
    return [sys.executable, "-m", "cab", "run", "--config-dir", str(outside), "-m", *GRID, *fixed, *more]


def store_of(results: Path) -> RecordStore:
    (folder,) = {path.parent.parent for path in results.glob("*/*/records/*.jsonl")}
    return RecordStore(folder)


def values(results: Path) -> dict[tuple, float]:
    """The value of each cell; fails where a cell has two."""
    rows = [row for row in store_of(results).lines() if row["metric"] in VALUES and row["seed"] is not None]
    ok = [row for row in rows if row["status"] == Status.OK]
    cells = Counter((row["setting"], row["pattern"], row["seed"], row["metric"]) for row in ok)
    assert set(cells.values()) == {1}
    return {(row["setting"], row["pattern"], row["seed"], row["metric"]): row["value"] for row in ok}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


def kill(process: psutil.Process) -> bool:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


def disturb(line: list[str], kills: int, rng: random.Random) -> None:
    """Gives ``line`` again and again, and kills it or one of its processes at ``kills`` random moments."""
    while kills > 0:
        child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        parent = psutil.Process(child.pid)
        while child.poll() is None and kills > 0:
            time.sleep(rng.uniform(0.2, 6.0))
            if child.poll() is not None:
                break
            workers = parent.children(recursive=True)
            victim = rng.choice(workers) if workers and rng.random() < 0.6 else parent
            kills -= kill(victim)
        if kills == 0 and child.poll() is None:
            kill(parent)
        child.wait()


def finish(line: list[str]) -> str:
    """Gives ``line`` until it ends well: what was killed alone once too often is an error, which a repeat mends."""
    for _ in range(3):
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout
    raise AssertionError(done.stderr)


def check_killed(outside: Path, tmp_path: Path, kills: int, steps: int) -> None:
    seed = random.randrange(10**6)
    print(f"moments drawn from seed {seed}")
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    assert subprocess.run(command(outside, calm, steps=steps), capture_output=True).returncode == 0
    disturb(command(outside, stormy, *WORKERS, steps=steps), kills, random.Random(seed))
    finish(command(outside, stormy, *WORKERS, steps=steps))
    assert len(values(calm)) == CELLS
    assert values(stormy) == values(calm)


def test_a_sweep_whose_processes_are_killed_gives_what_an_undisturbed_one_gives(outside: Path, tmp_path: Path) -> None:
    check_killed(outside, tmp_path, kills=3, steps=300)


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_repeat_nothing(outside: Path, tmp_path: Path) -> None:
    check_killed(outside, tmp_path, kills=20, steps=1500)


def test_two_sweeps_on_one_folder_share_the_work(outside: Path, tmp_path: Path) -> None:
    line = command(outside, tmp_path, steps=100)
    both = [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(2)]
    told = [child.communicate()[0] for child in both]
    assert [child.returncode for child in both] == [0, 0], told
    assert len(values(tmp_path)) == CELLS
    floors = Counter((row["run_key"], row["metric"]) for row in store_of(tmp_path).lines() if row["seed"] is None)
    assert set(floors.values()) == {1}


def test_a_worker_that_always_dies_is_an_error_and_the_others_go_on(outside: Path, tmp_path: Path) -> None:
    plug = tmp_path / "plug"
    (plug / "task").mkdir(parents=True)
    source = (outside / "first_token.py").read_text()
    deadly = "if self.pattern.is_causal:\n            import os\n            os.kill(os.getpid(), 9)\n        "
    source = source.replace("return Model(slots", f"{deadly}return Model(slots")
    (plug / "deadly.py").write_text(source)
    (plug / "task" / "deadly.yaml").write_text("_target_: deadly.FirstToken\nsize: ${size}\n")
    line = [sys.executable, "-m", "cab", "run", "--config-dir", str(plug), "-m", "task=deadly", "attention=linear,sdpa"]
    line += [
        "pattern=causal_self,noncausal_self",
        "trainer.max_steps=5",
        "threads=1",
        f"results='{tmp_path}'",
        *WORKERS,
    ]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "4 runs: 0 were complete; 2 error, 2 ok" in done.stdout
    assert done.stdout.count("its process died") == 2
    rows = [row for row in store_of(tmp_path).lines() if row["seed"] is not None and row["metric"] == "accuracy"]
    assert Counter((row["pattern"], row["status"]) for row in rows) == {
        ("causal_self", "error"): 2,
        ("noncausal_self", "ok"): 2,
    }


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 2 MiB; only root may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize(
    "workers",
    [pytest.param([], id="serial", marks=pytest.mark.slow), pytest.param(WORKERS, id="two workers")],
)
def test_a_disk_that_fills_up_stops_the_sweep_in_one_line_and_it_goes_on(
    outside: Path, tmp_path: Path, small_disk: Path, workers: list[str]
) -> None:
    line = command(outside, small_disk, *workers, steps=20)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(int(1.9 * 2**20)))
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Error executing job" not in done.stderr  # a line of Hydra's before ours
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    finish(line)
    calm = tmp_path / "calm"
    assert subprocess.run(command(outside, calm, steps=20), capture_output=True).returncode == 0
    assert values(small_disk) == values(calm)
    assert len(values(calm)) == CELLS


@pytest.mark.parametrize(
    ("workers", "number"),
    [
        pytest.param([], signal.SIGINT, id="serial, Ctrl-C", marks=pytest.mark.slow),
        pytest.param([], signal.SIGTERM, id="serial, SIGTERM"),
        pytest.param(WORKERS, signal.SIGINT, id="two workers, Ctrl-C"),
        pytest.param(WORKERS, signal.SIGTERM, id="two workers, SIGTERM", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_sweep_leaves_soon_says_how_to_go_on_and_does(
    outside: Path, tmp_path: Path, workers: list[str], number: signal.Signals
) -> None:
    line = command(outside, tmp_path, *workers, steps=100_000)
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    checkpoints: list[Path] = []
    deadline = time.monotonic() + 120
    while not checkpoints and time.monotonic() < deadline:
        time.sleep(0.1)
        checkpoints = list(tmp_path.glob("*/*/checkpoints/*.pt"))
    os.killpg(child.pid, number)  # as a terminal does, or a scheduler
    _, told = child.communicate(timeout=60)
    assert child.returncode == 130, told
    assert "give the same command again" in told
    assert "Traceback" not in told
    assert list(tmp_path.glob("*/*/checkpoints/*.pt"))


def test_every_row_of_a_run_is_there_or_none(tmp_path: Path) -> None:
    """Cuts a record file at every byte of its last append: no cut shows a part of it."""
    from cab.records import Record

    store = RecordStore(tmp_path)
    for key in ("a", "b"):
        store.append(*(Record(run_key=key, protocol="p", metric=str(i), value=1.0, status=Status.OK) for i in range(3)))
    (path,) = store.files()
    whole = path.read_bytes()
    second = whole.index(json.dumps({"run_key": "b"})[:-1].encode())
    for cut in range(second + 1, len(whole)):
        path.write_bytes(whole[:cut])
        problems: list[str] = []
        rows = [row["run_key"] for row in store.lines(problems)]
        assert rows == ["a"] * 3
        assert problems
        assert store.complete() == {"a"}
