"""Other attentions in trained models: exact where they should be, refused where weights would be lost."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cab.cli import main
from cab.ladder import unit
from cab.records import RecordStore
from cab.report.evidence import read_evidence
from cab.report.study import build_study
from cab.schema import Ladder

RUN = ["task=first_token", "pattern=causal_self", "seed=1", "threads=1", "trainer.max_steps=20"]
# Single precision keeps 7 digits; a softmax over twelve keys loses one or two of them.
TOLERANCE = 1e-5


def run(outside: Path, folder: Path, *more: str) -> int:
    return main(["run", "--config-dir", str(outside), *RUN, f"results='{folder}'", *more])


def store(folder: Path) -> RecordStore:
    (place,) = {path.parent.parent for path in folder.glob("*/*/records/*.jsonl")}
    return RecordStore(place)


def values(folder: Path, setting: str, phase: str = "evaluate") -> dict[str, float]:
    """By metric, of the one run of a setting."""
    rows = [row for row in store(folder).lines() if row["setting"] == setting and row["phase"] == phase]
    assert len({row["run_key"] for row in rows}) == 1
    return {row["metric"]: row["value"] for row in rows}


def units(folder: Path, setting: str) -> dict[str, np.ndarray]:
    records = store(folder)
    (key,) = {row["run_key"] for row in records.lines() if row["setting"] == setting}
    return records.read_units(key)


def test_exact_attention_dropped_in_is_the_trained_model(outside: Path, tmp_path: Path) -> None:
    assert run(outside, tmp_path / "trained", "attention=softmax") == 0
    for attention in ("softmax", "sdpa"):
        assert run(outside, tmp_path / attention, f"attention={attention}", "dropin=softmax") == 0
        trained, dropped = units(tmp_path / "trained", "softmax"), units(tmp_path / attention, attention)
        assert np.array_equal(trained["values/accuracy"], dropped["values/accuracy"])
        fidelity = values(tmp_path / attention, attention, "fidelity")
        assert fidelity["output_error"] < TOLERANCE
        assert fidelity["captured_mass"] == pytest.approx(1, abs=TOLERANCE)


def test_one_cluster_of_smyrf_is_dense_and_small_clusters_are_not(outside: Path, tmp_path: Path) -> None:
    for size in (64, 2):
        more = ["attention=smyrf", f"attention.cluster_size={size}", "attention.rounds=1", "dropin=softmax"]
        assert run(outside, tmp_path / str(size), *more) == 0
    one, small = (values(tmp_path / str(size), f"smyrf[cluster_size={size},rounds=1]", "fidelity") for size in (64, 2))
    assert one["output_error"] < TOLERANCE < 0.05 < small["output_error"]
    assert small["captured_mass"] < 0.95 < 1 - TOLERANCE < one["captured_mass"]


def test_singular_values_are_kept_of_exact_attention(outside: Path, tmp_path: Path) -> None:
    assert run(outside, tmp_path, "attention=softmax", "dropin=softmax") == 0
    (layer,) = units(tmp_path, "softmax")["fidelity/singular_values"]
    assert layer[0] == 1
    assert (np.diff(layer) <= 0).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["attention=nystromformer", "attention.conv_kernel=3", "pattern=noncausal_self"], "no values for"),
        (["attention=optimised"], "would have no place"),
    ],
)
def test_what_would_lose_or_lack_trained_weights_is_a_recorded_reason(
    outside: Path, tmp_path: Path, options: list[str], told: str
) -> None:
    assert run(outside, tmp_path, *options, "dropin=softmax") == 1
    rows = [row for row in store(tmp_path).lines() if row["seed"] is not None]
    assert [row["status"] for row in rows] == ["unsupported"]
    assert told in rows[0]["reason"]


def test_weights_are_trained_once_and_fine_tuning_goes_on_from_them(
    outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for steps in (0, 4):
        assert run(outside, tmp_path, "attention=softmax", "dropin=softmax", f"finetune.steps={steps}") == 0
    assert capsys.readouterr().err.count("whose weights are taken over") == 1
    (weights,) = (store(tmp_path).folder / "weights").glob("*.pt")
    tuned = [row for row in store(tmp_path).lines() if row["task_setting"] == "first_token[dropin=softmax,finetune=4]"]
    by_phase = {(row["phase"], row["metric"]): row["value"] for row in tuned}
    # Exact attention in the place of exact attention, both after four steps.
    assert by_phase["evaluate", "accuracy"] == by_phase["evaluate_exact", "accuracy"]
    curves = [store(tmp_path).read_units(key) for key in dict.fromkeys(row["run_key"] for row in tuned)]
    assert [len(curve["curve/loss"]) for curve in curves] == [2]  # the first and the last of four steps
    weights.write_bytes(weights.read_bytes()[:100])
    assert run(outside, tmp_path, "attention=linear", "dropin=softmax") == 1
    assert "remove it, and it is trained again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["dropin=linear"],
            "dropin=linear is not allowed: it is not exact attention; allowed: efficient",
        ),
        (["dropin=softmx"], "did you mean 'softmax'"),
        (["finetune.steps=3"], "give dropin=softmax too"),
        (["dropin=softmax", "finetune.steps=-1"], "finetune.steps=-1 is not allowed"),
    ],
)
def test_mistakes_are_one_line(
    outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    assert run(outside, tmp_path, "attention=smyrf", *options) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


@given(st.integers(2, 5000), st.floats(0.5, 16), st.floats(0.01, 1), st.booleans())
def test_a_rung_spends_its_budget_to_the_nearest_unit(length: int, weights: float, budget: float, by_log: bool) -> None:
    ladder = Ladder(option="x", weights={}, per_log_length=by_log)
    value, price = unit(ladder, weights, budget, length), weights * (math.log(length) if by_log else 1)
    assert value >= 1
    if value > 1:
        assert abs(value * price - budget * length) <= price / 2 + 1e-9 * length  # rounding in double precision


def test_a_study_is_planned_from_the_records_and_shown(
    outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["dropin", "--config-dir", str(outside), "experiment=first_token", "threads=1", f"results='{tmp_path}'"]
    command += ["measure.replicates=3", "measure.min_time_s=0.01", "measure.warmup_time_s=0", "measure.min_pairs=2"]
    assert main(command) == 0
    assert "10 runs: 0 were complete; 8 ok, 2 unsupported" in capsys.readouterr().err
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "10 runs: 10 were complete; nothing new" in told
    assert "0 measured" in told
    (folder,) = {path.parent for path in tmp_path.glob("*/*/study.json")}
    assert folder.parent.name.startswith("first_token+")  # measured otherwise than the experiment says
    assert len(json.loads((folder / "study.json").read_text())) == 5
    study = build_study(read_evidence(folder))
    assert study is not None
    (table,) = study.tables
    shown = {row.head.text: [cell.text for cell in row.cells] for row in table.rows}
    rungs = [f"smyrf[cluster_size={size},rounds=1]" for size in (12, 6)]
    assert list(shown) == ["softmax", "uniform", "optimised", *rungs]
    rows = [row for row in RecordStore(folder).lines() if row["phase"] == "evaluate" and row["status"] == "ok"]
    scored = [row for row in rows if row["task_setting"] == "first_token[dropin=softmax]" and row["seed"] is not None]
    accuracy = {row["setting"]: row["value"] for row in scored}
    assert len(accuracy) == 4
    for setting, value in accuracy.items():
        assert shown[setting][1].startswith(f"{value:.2f}"[:3])
    # One cluster: none of the 64 test examples differs, of which 1 - 0.025^(1/64) might (Clopper and Pearson).
    assert shown["smyrf[cluster_size=12,rounds=1]"][2] == "0.000 ± 0.056"
    assert shown["optimised"][1] == "–"
    assert any("would have no place" in note for note in table.notes)
    page = (folder / "dropin.html").read_text()
    assert "SMYRF-BERT, dense inference" in page
    assert 'href="dropin.html"' in (folder / "index.html").read_text()


def test_parts_of_a_study_are_named_or_refused(
    outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "dropin",
        "--config-dir",
        str(outside),
        "experiment=first_token",
        f"results='{tmp_path}'",
        "dry_run=true",
    ]
    assert main([*command, "attentions=['smy*']", "budgets=[0.25]", "finetune=[0]"]) == 0
    assert "smyrf[cluster_size=3,rounds=1]" in capsys.readouterr().err
    for part, told in (
        ("attentions=[smirf]", "did you mean 'smyrf'"),
        ("budgets=[0.5,2]", "budgets=2.0 is not allowed"),
        ("budgets=[0]", "budgets=0.0 is not allowed"),
        ("finetune=[-1]", "finetune=-1 is not allowed"),
        ("seeds=[]", "seeds=[] leaves nothing to run"),
    ):
        assert main([*command, part]) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
