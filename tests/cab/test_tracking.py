"""Trackers mirror a run; W&B works offline without an account."""

from pathlib import Path

import pytest

from cab.cli import main


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wandb_offline_writes_a_run_that_can_be_synced(outside: Path, in_tmp: Path, monkeypatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    command = ["run", "--config-dir", str(outside), "task=first_token", "trainer.max_steps=20", "tracker=wandb"]
    assert main([*command, "threads=1"]) == 0
    (log,) = in_tmp.glob("results/adhoc/*/trackers/wandb/offline-run-*/*.wandb")
    content = log.read_bytes()
    for told in (b"first_token", b"accuracy", b"loss"):
        assert told in content


def test_tensorboard_holds_the_curve_and_the_values(outside: Path, in_tmp: Path) -> None:
    pytest.importorskip("tensorboard")
    command = ["run", "--config-dir", str(outside), "task=first_token", "trainer.max_steps=20", "tracker=tensorboard"]
    assert main([*command, "threads=1"]) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = in_tmp.glob("results/adhoc/*/trackers/*/events.*")
    read = EventAccumulator(str(events.parent))
    read.Reload()
    assert [event.step for event in read.Scalars("loss")] == [1, 10, 20]
    assert "summary/accuracy" in read.Tags()["scalars"]
