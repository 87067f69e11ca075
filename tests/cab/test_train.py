"""A run is bitwise repeatable, resumes bit for bit, and starts every mechanism from the same values."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import open_dict

from attention_zoo.contract import Pattern
from cab.cells import Cell, resolve
from cab.compose import Composer
from cab.estimate import Estimator
from cab.records import Status
from cab.report.exports import tables_of
from cab.report.make import make_report
from cab.run import execute
from cab.run_training import OverBudget, build_model
from cab.samples import sample_paths
from cab.train import (
    CorruptCheckpoint,
    Diverged,
    Learner,
    learning_rate,
    load_checkpoint,
    make_fabric,
    make_optimizer,
    save_checkpoint,
    train,
)
from tasks.contract import Artifact


def cell(composer: Composer, results: Path, *overrides: str) -> Cell:
    config = composer.compose(
        "run", ["task=first_token", "threads=1", f"results={results}", *overrides], with_hydra=True
    )
    with open_dict(config):
        runtime = config.pop("hydra").runtime
    return resolve(config, runtime)


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Cut(Exception):
    pass


@pytest.mark.parametrize(
    "overrides", [["attention=softmax", "trainer.accumulate=2"], ["attention=performer"], ["attention=smyrf"]], ids=str
)
def test_a_cut_run_ends_bit_for_bit_as_an_uncut_one(composer: Composer, tmp_path: Path, overrides: list[str]) -> None:
    run = cell(composer, tmp_path, *overrides)
    whole = build_model(run)
    train(run.task, whole, run.recipe, seed=1)

    checkpoint, cut_at = tmp_path / "checkpoint.pt", 13

    def stop(step: int, loss: float) -> None:
        if step == cut_at + 1:
            raise Cut

    first = build_model(run)
    with pytest.raises(Cut):
        train(
            run.task,
            first,
            run.recipe,
            seed=1,
            checkpoint=checkpoint,
            checkpoint_interval_s=0,
            log_every=1,
            on_log=stop,
        )
    second = build_model(run)
    progress = train(run.task, second, run.recipe, seed=1, checkpoint=checkpoint, log_every=1)
    assert progress.logged_steps == list(range(1, run.recipe.max_steps + 1))
    assert equal(values(whole), values(second))


def test_two_runs_give_the_same_bits_and_another_seed_others(composer: Composer, tmp_path: Path) -> None:
    curves = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run = cell(composer, tmp_path / name, f"seed={seed}", "attention=performer")
        assert execute(run) is Status.OK
        curves.append(run.store.read_units(run.key)["curve/loss"].tolist())
    assert curves[0] == curves[1]
    assert curves[0] != curves[2]


def test_parameters_outside_the_mechanism_and_projections_start_equal_for_all(
    composer: Composer, tmp_path: Path
) -> None:
    reference = build_model(cell(composer, tmp_path, "attention=sdpa")).state_dict()
    over_budget = set()
    for attention in composer.options("attention"):
        run = cell(composer, tmp_path, f"attention={attention}", "pattern=noncausal_self")
        try:
            state = build_model(run).state_dict()
        except OverBudget:  # this backbone is narrow: what grows with the length or the state is too much for it
            over_budget.add(run.setting.card.name)
            continue
        shared = [name for name in state if not name.startswith("attention.core")]
        assert {name for name in reference if not name.startswith("attention.")} <= set(shared)
        noncausal = build_model(cell(composer, tmp_path, "attention=sdpa", "pattern=noncausal_self")).state_dict()
        for name in shared:
            if name in noncausal and not name.startswith("attention."):
                assert torch.equal(state[name], noncausal[name]), (attention, name)
    assert not over_budget & {"softmax", "linear", "performer", "smyrf", "reformer", "cosformer", "probsparse"}
    softmax = build_model(cell(composer, tmp_path, "attention=softmax")).state_dict()
    linear = build_model(cell(composer, tmp_path, "attention=linear")).state_dict()
    for name in reference:
        assert torch.equal(reference[name], softmax[name])
        assert torch.equal(reference[name], linear[name])


def test_batches_are_the_same_for_every_mechanism_and_start_anywhere(composer: Composer, tmp_path: Path) -> None:
    one, other = (cell(composer, tmp_path, f"attention={name}").task for name in ("sdpa", "performer"))
    first = one.batches("train", seed=3)
    for _ in range(5):
        next(first)
    assert torch.equal(next(first)["tokens"], next(other.batches("train", seed=3, start=5))["tokens"])


def test_a_loss_that_is_not_finite_is_a_recorded_result(composer: Composer, tmp_path: Path) -> None:
    run = cell(composer, tmp_path, "trainer.learning_rate=1e30")
    with pytest.raises(Diverged):
        train(run.task, build_model(run), run.recipe, seed=1, log_every=1)
    assert execute(run) is Status.DIVERGED
    (row,) = [row for row in run.store.lines() if row["run_key"] == run.key]
    assert (row["status"], row["value"]) == ("diverged", None)
    assert "loss" in row["reason"]


def test_a_damaged_checkpoint_is_told_and_the_run_starts_again(composer: Composer, tmp_path: Path) -> None:
    run = cell(composer, tmp_path)
    model = build_model(run)
    optimizer = make_optimizer(model, run.recipe)
    path = run.store.folder / "checkpoints" / f"{run.key}.pt"
    save_checkpoint(path, model, optimizer, load_checkpoint(path, model, optimizer, print))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    told: list[str] = []
    with pytest.raises(CorruptCheckpoint):
        load_checkpoint(path, model, optimizer, told.append)
    save_checkpoint(path, model, optimizer, load_checkpoint(path, model, optimizer, print))
    path.write_bytes(b"no checkpoint")
    assert execute(run, say=told.append) is Status.OK
    assert len(told) == 2
    assert "starting from step 0" in told[1]


def test_accumulated_batches_are_as_one_large_batch(composer: Composer, tmp_path: Path) -> None:
    run = cell(composer, tmp_path, "attention=softmax")
    recipe = replace(run.recipe, learning_rate=1e-3)
    parts = list(itertools.islice(run.task.batches("train", 1), 3))
    whole = {"tokens": torch.cat([part["tokens"] for part in parts])}
    models = [build_model(run).double() for _ in range(2)]
    losses = [
        Learner(run.task, model, recipe, make_fabric(torch.device("cpu"), torch.float64)).update(batches)
        for model, batches in zip(models, (parts, [whole]), strict=True)
    ]
    # Sums of three means of eight in another order, in float64; Adam divides a gradient by its own size.
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=0)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-8)


def test_warm_up_is_linear_and_decay_ends_near_zero(composer: Composer, tmp_path: Path) -> None:
    recipe = replace(cell(composer, tmp_path).recipe, max_steps=100, warmup_steps=10, learning_rate=1.0)
    rates = [learning_rate(recipe, step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 1e-3


def test_a_run_records_what_was_promised(composer: Composer, tmp_path: Path) -> None:
    run = cell(composer, tmp_path, "attention=linear")
    assert execute(run) is Status.OK
    rows = {row["metric"]: row for row in run.store.lines() if row["run_key"] == run.key}
    assert set(rows) == {"accuracy", "steps_per_s", "tokens_per_s", "train_time_s", "peak_extra_bytes", "parameters"}
    assert rows["parameters"]["value"] == sum(p.numel() for p in build_model(run).parameters())
    assert rows["accuracy"]["pattern"] == Pattern.CAUSAL_SELF
    manifest = json.loads((run.store.folder / "manifests" / f"{rows['accuracy']['manifest']}.json").read_text())
    assert manifest["config"]["attention"]["setting"] == "linear"
    units = run.store.read_units(run.key)
    assert units["values/accuracy"].mean() == pytest.approx(rows["accuracy"]["value"])
    floors = [row for row in run.store.lines() if str(row["setting"]).startswith("floor:")]
    assert [(row["setting"], row["value"]) for row in floors] == [("floor:uniform", 0.125)]


def test_a_run_without_a_step_scores_the_model_as_built_and_says_nothing_of_training(
    composer: Composer, tmp_path: Path
) -> None:
    run = cell(composer, tmp_path, "attention=linear", "trainer.max_steps=0")
    assert execute(run) is Status.OK
    rows = {row["metric"]: row for row in run.store.lines() if row["run_key"] == run.key}
    assert {name: row["phase"] for name, row in rows.items()} == {
        "accuracy": "evaluate",
        "peak_extra_bytes": "inference",
        "parameters": "inference",
    }
    built = build_model(run).eval()
    with torch.inference_mode():
        (accuracy,) = run.task.evaluate(built, "test").values.values()
    assert rows["accuracy"]["value"] == accuracy.mean()
    # The embedded tokens of a batch alone: 8 sequences of 12 positions of 16 floats.
    assert rows["peak_extra_bytes"]["value"] >= 4 * 8 * 12 * 16
    assert run.store.read_units(run.key)["curve/step"].size == 0
    assert run.key in run.store.complete()
    estimate = Estimator(run.store.lines()).of(run)
    assert estimate.bytes == rows["peak_extra_bytes"]["value"]
    assert estimate.seconds == rows["parameters"]["duration_s"]


def test_the_page_of_a_run_without_a_step_has_its_score_and_no_training_table(
    composer: Composer, tmp_path: Path
) -> None:
    titles = []
    for steps in (0, 2):
        run = cell(composer, tmp_path / str(steps), f"trainer.max_steps={steps}")
        assert execute(run) is Status.OK
        titles.append({table.caption for table in tables_of(make_report(run.store.folder, figures=False).book)})
    assert titles[1] - titles[0] == {"Training runs"}
    assert not titles[0] - titles[1]


def test_samples_stand_beside_the_records_and_the_report_leads_to_them(composer: Composer, tmp_path: Path) -> None:
    run = cell(composer, tmp_path)
    assert execute(run) is Status.OK
    ((path,),) = sample_paths(run.store.folder).values()
    assert path == f"samples/{run.key}/guess.txt"
    assert (run.store.folder / path).read_text().startswith("[")
    tables = tables_of(make_report(run.store.folder, figures=False).book)
    cells = [cell for table in tables for row in table.rows for cell in row.cells]
    assert ("sample", path) in [detail for cell in cells for detail in cell.details]


def test_a_fault_in_the_samples_costs_no_value(composer: Composer, tmp_path: Path) -> None:
    run = cell(composer, tmp_path, "trainer.max_steps=1")
    told: list[str] = []
    kind = type(run.task)
    original = kind.samples
    kind.samples = lambda self, model: [Artifact("../out", "text/plain", b"")]
    try:
        assert execute(run, say=told.append) is Status.OK
    finally:
        kind.samples = original
    assert any("../out" in line for line in told)
    assert not sample_paths(run.store.folder)


def test_the_key_follows_what_affects_the_result_and_nothing_else(composer: Composer, tmp_path: Path) -> None:
    base = cell(composer, tmp_path).key
    assert cell(composer, tmp_path / "elsewhere", "tracker=wandb", "trainer.log_every=3").key == base
    for change in ("seed=2", "attention=sdpa", "pattern=noncausal_self", "dtype=bfloat16", "trainer.max_steps=7",
                   "task.batch_size=9", "slots=all", "baseline=softmax", "trainer.accumulate=2"):  # fmt: skip
        assert cell(composer, tmp_path, change).key != base, change


def test_owned_keys_move_the_records_out_of_the_protocol(composer: Composer, tmp_path: Path) -> None:
    def where(*overrides: str) -> str:
        return cell(composer, tmp_path, "protocol=quick", *overrides).protocol

    assert where() == where("attention=linear", "pattern=noncausal_self") == "quick"
    moved = {where("trainer.max_steps=3"), where("seed=2"), where("task.batch_size=4")}
    assert len(moved) == 3
    assert all(name.startswith("quick+") for name in moved)
    assert cell(composer, tmp_path, "trainer.max_steps=3").protocol == "adhoc"


def test_a_setting_is_named_after_its_yaml_and_what_differs(composer: Composer, tmp_path: Path) -> None:
    assert cell(composer, tmp_path, "attention=performer", "attention.num_features=256").setting.name == "performer"
    changed = cell(composer, tmp_path, "attention=performer", "attention.num_features=8")
    assert changed.setting.name == "performer[num_features=8]"
    assert cell(composer, tmp_path, "task.batch_size=4").task_setting == "first_token[batch_size=4]"
