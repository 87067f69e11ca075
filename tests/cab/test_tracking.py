"""Trackers mirror a run: what arrives in W&B (a real wandb-core, a server of ours) and in TensorBoard's files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from wandb_stub import serving

from cab.records import RecordStore

pytest.importorskip("tensorboard")


def line(
    outside: Path, results: Path, tracker: str, *more: str, steps: int = 30, task: str = "first_token"
) -> list[str]:
    fixed = [f"task={task}", f"trainer.max_steps={steps}", "threads=1", f"results='{results}'", f"tracker={tracker}"]
    return [sys.executable, "-m", "cab", "run", "--config-dir", str(outside), *fixed, *more]


def clean(**environment: str) -> dict[str, str]:
    """The environment without what it says of W&B; a machine that is logged in must not lend its key."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    return kept | {"NETRC": os.devnull, "WANDB_CONFIG_DIR": os.environ.get("TMPDIR", "/tmp")} | environment


def give(command: list[str], **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, env=clean(**environment), timeout=300)


def folder_of(results: Path) -> Path:
    (found,) = results.glob("*/*/")
    return found


def curve(results: Path) -> dict[str, list[float]]:
    """Of each run its losses, from the records' side files."""
    store = RecordStore(folder_of(results))
    runs = {row["run_key"] for row in store.lines() if row["seed"] is not None}
    return {key: store.read_units(key)["curve/loss"].tolist() for key in runs}


def test_a_sweep_arrives_at_a_server_with_group_config_curve_table_and_samples(outside: Path, tmp_path: Path) -> None:
    with serving() as (stub, url):
        command = line(outside, tmp_path, "wandb", "tracker.mode=online", "-m", "attention=linear,sdpa")
        done = give(command, **stub.environment(url))
        assert done.returncode == 0, done.stderr
        assert "left out" not in done.stderr
        losses = curve(tmp_path)
        assert set(stub.runs) == set(losses)
        (group,) = {run["group"] for run in stub.runs.values()}
        assert group.startswith("sweep-")
        for key, run in stub.runs.items():
            told = [(each["_step"], each["loss"]) for each in stub.history(key) if "loss" in each]
            assert [step for step, _ in told] == [1, 10, 20, 30]
            assert [loss for _, loss in told] == losses[key]
            assert run["config"]["attention"]["setting"] in run["name"]
            rows = {row["metric"]: row for row in RecordStore(folder_of(tmp_path)).of_run(key)}
            assert {metric: run["summary"][metric] for metric in rows} == {m: row["value"] for m, row in rows.items()}
            assert run["summary"]["status"] == "ok"
            assert run["exit_code"] == 0
            (table,) = [json.loads(body) for name, body in run["files"].items() if "media/table/rows" in name]
            assert {(cells[0], cells[1]) for cells in table["data"]} == {(m, row["value"]) for m, row in rows.items()}
            (page,) = [body for name, body in run["files"].items() if "guess.txt" in name]
            assert (folder_of(tmp_path) / "samples" / key / "guess.txt").read_bytes() in page


def cut(command: list[str], results: Path, number: signal.Signals, **environment: str) -> str:
    """Starts a run and sends ``number`` to it when a checkpoint is there and some steps more are logged."""
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=clean(**environment))
    deadline = time.monotonic() + 60
    while not list(results.glob("*/*/checkpoints/*.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    child.send_signal(number)
    _, told = child.communicate(timeout=60)
    return told


SLOW_ENOUGH = ["trainer.checkpoint_interval_s=1"]


def test_a_cut_run_is_closed_as_such_and_goes_on_in_the_same_run_of_the_server(outside: Path, tmp_path: Path) -> None:
    with serving() as (stub, url):
        environment = stub.environment(url)
        command = line(outside, tmp_path, "wandb", "tracker.mode=online", *SLOW_ENOUGH, steps=3000)
        said = cut(command, tmp_path, signal.SIGINT, **environment)
        assert "left out" not in said, said
        assert stub.runs, said
        ((key, run),) = stub.runs.items()
        assert (run["exit_code"], run["summary"]["status"]) == (130, "interrupted")
        done = give(command, **environment)
        assert done.returncode == 0, done.stderr
        assert list(stub.runs) == [key]
        assert (run["exit_code"], run["summary"]["status"]) == (0, "ok")
        steps = [each["_step"] for each in stub.history(key) if "loss" in each]
        assert len(steps) == len(set(steps))
        assert sorted(steps) == [1, *range(10, 3001, 10)]


def test_tensorboard_has_a_folder_per_sweep_with_curve_values_table_and_samples(outside: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = give(line(outside, tmp_path, "tensorboard", "-m", "attention=linear,sdpa"))
    assert done.returncode == 0, done.stderr
    trackers = folder_of(tmp_path) / "trackers" / "tensorboard"
    (sweep,) = trackers.iterdir()
    assert sweep.name.startswith("sweep-")
    found = set()
    for run in sweep.iterdir():
        read = EventAccumulator(str(run))
        read.Reload()
        assert [event.step for event in read.Scalars("loss")] == [1, 10, 20, 30]
        assert {"rows/text_summary", "status/text_summary", "samples/guess.txt/text_summary"} <= set(
            read.Tags()["tensors"]
        )
        assert "summary/accuracy" in read.Tags()["scalars"]
        found.add(tuple(event.value for event in read.Scalars("loss")))
    assert found == {tuple(np.float32(losses).tolist()) for losses in curve(tmp_path).values()}


def test_a_killed_run_goes_on_in_its_folder_of_tensorboard_without_a_step_twice(outside: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    command = line(outside, tmp_path, "tensorboard", *SLOW_ENOUGH, steps=3000)
    cut(command, tmp_path, signal.SIGKILL)
    assert give(command).returncode == 0
    (run,) = (folder_of(tmp_path) / "trackers" / "tensorboard").iterdir()
    assert len(list(run.glob("events.*"))) == 2
    read = EventAccumulator(str(run), size_guidance={"scalars": 0})
    read.Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, *range(10, 3001, 10)]


def test_a_run_with_options_in_its_name_goes_on_in_its_folder_of_tensorboard(tmp_path: Path) -> None:
    from cab.tensorboard_tracker import TensorBoardTracker
    from cab.tracking import Outcome, TrackedRun

    for group in ("first", "second"):
        tracker = TensorBoardTracker()
        tracker.start(TrackedRun("k", "lm[path=/a]-CS-performer[num_features=64]-1", group, {}, tmp_path))
        tracker.finish(Outcome("interrupted"))
    (run,) = (tmp_path / "tensorboard").glob("*/*")
    assert len(list(run.glob("events.*"))) == 2


def test_pictures_and_sounds_are_shown_as_such(tmp_path: Path) -> None:
    import io
    import wave

    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from cab.tensorboard_tracker import TensorBoardTracker
    from cab.tracking import Outcome, TrackedRun

    picture, sound = tmp_path / "a.png", tmp_path / "b.wav"
    Image.new("L", (5, 3), 200).save(picture)
    tone = (20000 * np.sin(np.arange(400) / 3)).astype("<i2")
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(tone.tobytes())
    tracker = TensorBoardTracker()
    tracker.start(TrackedRun("k", "name", None, {}, tmp_path / "trackers"))
    tracker.finish(Outcome("ok", samples=[(picture, "image/png"), (sound, "audio/wav")]))
    read = EventAccumulator(str(tmp_path / "trackers" / "tensorboard" / "name"))
    read.Reload()
    (image,) = read.Images("samples/a.png")
    assert np.asarray(Image.open(io.BytesIO(image.encoded_image_string))).tolist() == [[[200] * 3] * 5] * 3
    (audio,) = read.Audio("samples/b.wav")
    assert (audio.sample_rate, audio.length_frames) == (8000, 400)
    with wave.open(io.BytesIO(audio.encoded_audio_string)) as file:
        heard = np.frombuffer(file.readframes(400), dtype="<i2").astype(int)
    # Scaling to [-1, 1] by 1/32768 and back by 32767 rounds by one step at most.
    assert np.abs(heard - tone).max() <= 1


def test_the_same_sweep_has_the_same_group_and_another_one_another() -> None:
    from omegaconf import OmegaConf

    from cab.sweep import PlanningSweeper

    sweeper = PlanningSweeper(None)  # type: ignore[arg-type]
    sweeper.master = OmegaConf.create({"sweep": None})
    grid = ["task=lm", "attention=linear,sdpa", "seed=1,2"]
    (group,) = sweeper._group([grid])
    assert sweeper._group([[*reversed(grid), "hydra/launcher=joblib", "tracker=wandb", "results='/else'"]]) == [group]
    assert sweeper._group([[*grid[:-1], "seed=1,2,3"]]) != [group]
    sweeper.master = OmegaConf.create({"sweep": "mine"})
    assert sweeper._group([grid]) == []
