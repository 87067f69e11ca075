"""Faults on purpose, real ones: clocks that jump, folders that cannot be written, damaged files, signals anywhere."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from swept import CELLS, command, values

from cab.records import RecordStore

WORKERS = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
GO_ON = "cab: interrupted; give the same command again and it goes on where it was"

# A wall clock that jumps by six hours, forth or back, every second and a half; or stands still.
CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (failed || clock != CLOCK_REALTIME) return failed;
    if (getenv("CLOCK_STANDS")) {
        now->tv_sec = 1700000000;
        now->tv_nsec = 0;
    } else {
        const long jumps[] = {0, 6 * 3600, -6 * 3600};
        struct timespec since;
        real(CLOCK_MONOTONIC, &since);
        now->tv_sec += jumps[(since.tv_sec * 2 + since.tv_nsec / 500000000) / 3 % 3];
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that is loaded before all others and answers for the wall clock; the monotonic one stays."""
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and Linux's loader")
    folder = tmp_path_factory.mktemp("clock")
    (folder / "clock.c").write_text(CLOCK)
    library = folder / "clock.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "clock.c", "-ldl"], check=True)
    return library


@pytest.fixture(scope="module")
def calm(outside: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed sweep."""
    results = tmp_path_factory.mktemp("calm")
    done = subprocess.run(command(outside, results), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return results


def store_of(results: Path) -> RecordStore:
    (folder,) = {path.parent.parent for path in results.glob("*/*/records/*.jsonl")}
    return RecordStore(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stands",
    # Serial: semaphores of joblib's workers wait by the kernel's wall clock, which no library can shift.
    [{}, {"CLOCK_STANDS": "1"}],
    ids=["jumps by hours", "stands still"],
)
def test_a_wall_clock_that_lies_loses_and_repeats_nothing(
    outside: Path, tmp_path: Path, calm: Path, clock: Path, stands: dict[str, str]
) -> None:
    environment = {**os.environ, "LD_PRELOAD": str(clock), **stands}
    look = "import time\nfor _ in range(60):\n print(int(time.time()) // 7200, flush=True)\n time.sleep(0.1)"
    seen = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=True)
    assert len(set(seen.stdout.split())) == (1 if stands else 3)  # the fault is there
    line = command(outside, tmp_path)
    begin = time.monotonic()
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    took = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    assert values(tmp_path) == values(calm)
    rows = [row for row in store_of(tmp_path).lines() if row["seed"] is not None]
    durations = [row["duration_s"] for row in rows]
    assert min(durations) >= 0
    assert max(durations) <= took
    manifests = {row["run_key"]: row["manifest"] for row in rows}
    assert len(set(manifests.values())) == CELLS
    written = {path.stem for path in (store_of(tmp_path).folder / "manifests").glob("*.json")}
    assert set(manifests.values()) <= written
    again = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert f"{CELLS} runs: {CELLS} were complete; nothing new" in again.stdout


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; only root may mount one."""
    place = tmp_path / "mounted"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(place)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def remount(place: Path, how: str) -> bool:
    return subprocess.run(["mount", "-o", f"remount,{how}", str(place)], capture_output=True).returncode == 0


def check_refused(done: subprocess.CompletedProcess, status: int, said: str) -> None:
    assert done.returncode == status, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("cab: ")]
    assert said in line
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_trained(outside: Path, mounted: Path) -> None:
    assert remount(mounted, "ro")
    done = subprocess.run(command(outside, mounted), capture_output=True, text=True)
    check_refused(done, 2, "cannot be written (Read-only file system): give another with results=DIR")
    assert "[1/" not in done.stderr


def test_claims_that_cannot_be_written_are_refused_before_anything_is_trained(
    outside: Path, tmp_path: Path, mounted: Path
) -> None:
    dry = subprocess.run([*command(outside, tmp_path / "results"), "dry_run=true"], capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr
    (folder,) = (tmp_path / "results").glob("*/*/")
    (folder / "claims").mkdir()
    subprocess.run(["mount", "--bind", str(mounted), str(folder / "claims")], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder / "claims")], check=True)
    try:
        done = subprocess.run(command(outside, tmp_path / "results"), capture_output=True, text=True)
    finally:
        subprocess.run(["umount", "-l", str(folder / "claims")], check=True)
    check_refused(done, 2, "claims' cannot be written (Read-only file system)")
    assert not list(folder.glob("records/*"))


def test_a_folder_that_turns_read_only_stops_the_sweep_in_one_line_and_it_goes_on(
    outside: Path, mounted: Path, calm: Path
) -> None:
    line = command(outside, mounted)
    child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(mounted.glob("*/*/records/*.jsonl")):
        assert child.poll() is None
        time.sleep(0.02)
    while not remount(mounted, "ro"):  # busy while a file is open for writing
        assert child.poll() is None
    _, told = child.communicate(timeout=120)
    check_refused(subprocess.CompletedProcess(line, child.returncode, "", told), 1, "Read-only file system")
    assert remount(mounted, "rw")
    assert subprocess.run(line, capture_output=True).returncode == 0
    assert values(mounted) == values(calm)


def test_a_disk_that_is_full_when_a_checkpoint_is_written_stops_in_one_line(
    outside: Path, tmp_path: Path, mounted: Path
) -> None:
    line = [*command(outside, tmp_path / "results", steps=3000), "trainer.checkpoint_interval_s=0.1"]
    assert subprocess.run([*line, "dry_run=true"], capture_output=True).returncode == 0
    (folder,) = (tmp_path / "results").glob("*/*/")
    assert remount(mounted, "size=4k")
    (folder / "checkpoints").symlink_to(mounted)
    done = subprocess.run(line, capture_output=True, text=True)
    check_refused(done, 1, "No space left on device")
    assert list(mounted.iterdir()) == []
    assert not [row for path in folder.glob("records/*") for row in path.read_text().splitlines() if "error" in row]


def damaged_checkpoints(folder: Path, keys: list[str]) -> None:
    """One for each of ``keys``: half a file, noise, other shapes, an archive of something else, nothing at all."""
    folder.mkdir()
    other = {"model": {"weight": torch.zeros(3)}, "optimizer": {}, "progress": {"step": 7}}
    first, *_ = paths = [folder / f"{key}.pt" for key in keys]
    torch.save(other, first)
    whole = first.read_bytes()
    shutil.make_archive(str(paths[1].with_suffix("")), "zip", folder.parent / "records")
    paths[1].with_suffix(".zip").rename(paths[1])
    paths[2].write_bytes(whole[: len(whole) // 2])
    paths[3].write_bytes(os.urandom(5000))
    paths[4].write_bytes(b"")
    torch.save([1, 2], paths[5])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], pytest.param(WORKERS, marks=pytest.mark.slow)], ids=["serial", "two workers"])
def test_damaged_checkpoints_are_said_and_the_cells_start_anew(
    outside: Path, tmp_path: Path, calm: Path, launcher: list[str]
) -> None:
    keys = sorted({key for *_, key in values(calm)})
    (folder,) = {path.parent.parent for path in calm.glob("*/*/records/*.jsonl")}
    here = tmp_path / folder.relative_to(calm)
    (here / "records").mkdir(parents=True)
    damaged_checkpoints(here / "checkpoints", keys)
    done = subprocess.run(command(outside, tmp_path, *launcher), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if not launcher:  # what workers say goes where their launcher sends it
        assert done.stderr.count("starting from step 0") == 6
    assert values(tmp_path) == values(calm)
    for key in keys:
        one, other = store_of(tmp_path).read_units(key), store_of(calm).read_units(key)
        assert {name: array.tobytes() for name, array in one.items()} == {n: a.tobytes() for n, a in other.items()}
    assert not list((here / "checkpoints").iterdir())


def test_damaged_lines_side_files_and_stale_claims_are_survived(outside: Path, tmp_path: Path, calm: Path) -> None:
    """A run all of whose lines are damaged is made again; one that lost a line, or its side file, is told of."""
    shutil.copytree(calm, tmp_path / "results")
    store = store_of(tmp_path / "results")
    lost, hurt, *_, stale = sorted({key for *_, key in values(calm)})
    (path,) = store.files()
    lines = path.read_bytes().split(b"\n")
    first_of_hurt = next(number for number, each in enumerate(lines) if hurt.encode() in each)
    for number, each in enumerate(lines):
        if lost.encode() in each or number == first_of_hurt:
            lines[number] = each[: len(each) // 2] + b"\xff\x00" + each[len(each) // 2 :]
    path.write_bytes(b"\n".join(lines))
    units = store.folder / "units" / f"{stale}.npz"
    units.write_bytes(units.read_bytes()[:100])
    (store.folder / "claims").mkdir(exist_ok=True)
    (store.folder / "claims" / lost).write_bytes(b"")  # of a process that is no more
    done = subprocess.run(command(outside, tmp_path / "results"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{CELLS} runs: {CELLS - 1} were complete; 1 ok" in done.stdout
    again = values(tmp_path / "results")
    assert again == {cell: value for cell, value in values(calm).items() if cell in again}
    assert lost in {key for *_, key in again}
    report = [sys.executable, "-m", "cab", "report", f"folder={store.folder}"]
    assert subprocess.run(report, capture_output=True).returncode == 0
    page = (store.folder / "leaderboard.md").read_text()
    assert f"{path.name}:{first_of_hurt + 1}" in page
    assert f"units/{stale}.npz cannot be read" in page


# A task that stays somewhere for ten minutes, or holds on to a signal there.
STAYS = """
import os, time, traceback
from pathlib import Path
from first_token import FirstToken as Quick

def stay(place):
    if os.environ["STAY_AT"] != place:
        return
    Path(os.environ["STAY_MARK"]).touch()
    end = time.monotonic() + 600
    while time.monotonic() < end:
        try:
            time.sleep(600)
        except BaseException:
            if "STAY_DEAF" not in os.environ:
                raise

class FirstToken(Quick):
    def prepare(self): stay("prepare")
    def build_model(self, slots): stay("build_model"); return super().build_model(slots)
    def evaluate(self, model, split): stay("evaluate"); return super().evaluate(model, split)
    def samples(self, model): stay("samples"); return super().samples(model)
    def floors(self, split): stay("floors"); return super().floors(split)
    def loss(self, model, batch):
        measured = any(frame.name == "peak_extra_bytes" for frame in traceback.extract_stack())
        stay("measuring memory" if measured else "training")
        return super().loss(model, batch)

stay("import")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "number", "deaf"),
    [
        ("import", signal.SIGTERM, False),
        ("prepare", signal.SIGTERM, False),
        ("build_model", signal.SIGINT, False),
        ("training", signal.SIGTERM, False),
        ("measuring memory", signal.SIGTERM, False),
        ("evaluate", signal.SIGTERM, False),
        ("evaluate", signal.SIGINT, True),
        ("samples", signal.SIGINT, False),
        ("floors", signal.SIGTERM, False),
    ],
)
def test_a_signal_wherever_a_run_stays_ends_it_with_a_line_on_how_to_go_on(
    outside: Path, tmp_path: Path, place: str, number: signal.Signals, deaf: bool
) -> None:
    plug = tmp_path / "plug"
    shutil.copytree(outside, plug)
    (plug / "stays.py").write_text(STAYS)
    (plug / "task" / "stays.yaml").write_text("_target_: stays.FirstToken\nsize: ${size}\n")
    line = [sys.executable, "-m", "cab", "run", "-m", "--config-dir", str(plug), "task=stays", "attention=linear,sdpa"]
    line += ["threads=1", "trainer.max_steps=5", f"results='{tmp_path / 'results'}'"]
    mark = tmp_path / "mark"
    environment = {**os.environ, "STAY_AT": place, "STAY_MARK": str(mark), **({"STAY_DEAF": "1"} if deaf else {})}
    child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    while not mark.exists():
        assert child.poll() is None, child.communicate()
        time.sleep(0.02)
    child.send_signal(number)
    _, told = child.communicate(timeout=60)  # of the ten minutes
    assert child.returncode == 130, told
    assert told.strip().splitlines()[-1] == GO_ON
    assert "Traceback" not in told
    assert not [
        row for path in tmp_path.glob("results/*/*/records/*") for row in path.read_text().split() if "ok" in row
    ]
