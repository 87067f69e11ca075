"""The verb on attentions that do nothing, refuse, or are killed: which records there are, and what a repeat does."""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from attention_zoo.contract import Pattern
from cab.efficiency import Summary, efficiency, plan
from cab.records import RecordStore, Status
from cab.schema import Efficiency, Measure
from cab.settings import Setting, by_implementation

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")


def named(name: str, kind: str) -> Setting:
    return Setting(name, f"isolated_functions.{kind}")


PASS_ON, NO_CROSSING, KILLED = named("pass_on", "PassOn"), named("no_crossing", "NoCrossing"), named("killed", "Killed")
SDPA = Setting("sdpa", "attention_zoo.sdpa.SDPAAttention")
LINEAR = Setting("linear", "attention_zoo.linear.LinearAttention")
MEASURE = Measure(heads=2, head_dim=8, replicates=2, min_time_s=0.0, warmup_time_s=0.0, min_pairs=2)


def config(**changes: Any) -> Efficiency:
    base = Efficiency(
        patterns=["noncausal_self", "noncausal_cross"],
        lengths=[32, 64],
        baselines=["sdpa"],
        device="cpu",
        threads=1,
        measure=MEASURE,
    )
    return replace(base, **changes)


def rows(frame: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    for name, value in columns.items():
        frame = frame[frame[name] == value]
    return frame


def test_records_are_complete_and_a_repeat_does_nothing(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    seen: list[int] = []
    summary = efficiency(
        config(), [PASS_ON, NO_CROSSING, SDPA], store, on_cell=lambda: seen.append(len(list(store.lines())))
    )
    frame = store.frame()
    # Cells: pass_on and sdpa in two patterns, no_crossing in one, at two lengths; each 2 timed children and 1 traced.
    assert summary == Summary(10 * 3 + 2, 0, 0, {Status.OK: 30, Status.UNSUPPORTED: 2})
    assert len(seen) == 32
    assert seen == sorted(seen)
    for metric, each in (("time_s", 2), ("ratio", 2), ("peak_extra_bytes", 1), ("flops", 1), ("parameters", 1)):
        found = rows(frame, metric=metric, status="ok")
        assert len(found) == 10 * each
        assert (found.value > 0).all() or metric == "flops"
    ratios = rows(frame, metric="ratio")
    assert set(ratios.baseline) == {"sdpa"}
    assert set(ratios.replicate) == {0, 1}
    refused = rows(frame, setting="no_crossing", pattern="noncausal_cross")
    assert refused.status.tolist() == ["unsupported"] * 2
    assert refused.reason.str.contains("it has one sequence").all()
    for column in (
        "hardware",
        "threads",
        "dtype",
        "device",
        "level",
        "phase",
        "length_kv",
        "unit",
        "manifest",
        "duration_s",
    ):
        assert frame[column].notna().all()
    (manifest,) = set(frame.manifest)
    assert (tmp_path / "manifests" / f"{manifest}.json").exists()
    raw = store.read_units(ratios.run_key.iloc[0])
    assert len(raw["mechanism_s"]) == len(raw["baseline_s"]) == 2
    assert len(raw["first_s"]) == 2
    assert efficiency(config(), [PASS_ON, NO_CROSSING, SDPA], store) == Summary(0, 32, 0, {})
    assert len(store.frame()) == len(frame)


def test_a_killed_cell_is_recorded_and_disturbs_nothing_else(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    efficiency(config(patterns=["noncausal_self"]), [KILLED, PASS_ON], store, baselines={"sdpa": SDPA})
    frame = store.frame()
    at_64 = rows(frame, setting="killed", length_q=64)
    lost = at_64[at_64.metric.isin(["time_s", "ratio", "peak_extra_bytes"])]
    assert set(lost.status) == {"error"}  # tried again by the next call: nobody was out of memory
    assert lost.reason.str.contains("SIGKILL").all()
    # What needs no run of the mechanism is there all the same.
    assert rows(at_64, metric="flops").value.tolist() == [123 + 4 * 2 * 64 * 16**2]
    assert set(rows(frame, setting="killed", length_q=32).status) == {"ok"}
    assert set(rows(frame, setting="pass_on").status) == {"ok"}


def test_the_failure_of_a_baseline_blanks_its_ratio_and_nothing_else(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    grid = config(patterns=["noncausal_self"], lengths=[64], baselines=["killed", "sdpa"])
    efficiency(grid, [PASS_ON], store, baselines={"killed": KILLED, "sdpa": SDPA})
    frame = rows(store.frame(), setting="pass_on")
    assert set(rows(frame, metric="time_s").status) == {"ok"}
    assert set(rows(frame, metric="ratio", baseline="sdpa").status) == {"ok"}
    blanked = rows(frame, metric="ratio", baseline="killed")
    assert set(blanked.status) == {"error"}
    assert blanked.reason.str.startswith("paired with killed: ").all()


def test_memory_of_baselines_is_there_for_the_ratio_of_peaks(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    efficiency(config(), [PASS_ON], store, baselines={"sdpa": SDPA})
    peaks = rows(store.frame(), metric="peak_extra_bytes").groupby(["setting", "pattern", "length_q"]).size()
    assert (peaks == 1).all()
    assert len(peaks) == 2 * 2 * 2
    assert rows(store.frame(), metric="time_s", setting="sdpa").empty


def test_limits_are_outcomes(tmp_path: Path) -> None:
    scratch = named("scratch", "Scratch")
    small = replace(MEASURE, memory_limit="48MiB", replicates=1)
    grid = config(patterns=["noncausal_self"], lengths=[64], measure=small)
    efficiency(grid, [scratch], RecordStore(tmp_path / "memory"), baselines={"sdpa": SDPA})
    frame = RecordStore(tmp_path / "memory").frame()
    assert set(rows(frame, setting="scratch", metric="time_s").status) == {"out_of_memory"}
    assert set(rows(frame, setting="sdpa", metric="peak_extra_bytes").status) == {"ok"}
    short = config(patterns=["noncausal_self"], lengths=[64], measure=replace(MEASURE, time_limit=1e-6, replicates=1))
    summary = efficiency(short, [PASS_ON], RecordStore(tmp_path / "time"), baselines={"sdpa": SDPA})
    assert set(summary.ended) == {Status.TIMEOUT}
    assert summary.errors == 0


def test_the_gate_keeps_a_setting_out_and_a_later_pass_lets_it_in(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    grid = config(patterns=["noncausal_self"], lengths=[32], measure=replace(MEASURE, replicates=1))

    def gate(setting: Setting, pattern: Pattern) -> str | None:
        return "T3 fails" if setting.name == "pass_on" else None

    efficiency(grid, [PASS_ON, SDPA], store, gate=gate)
    kept_out = rows(store.frame(), setting="pass_on")
    assert kept_out[["status", "reason"]].to_numpy().tolist() == [["failed_certificate", "T3 fails"]]
    plan = efficiency(replace(grid, dry_run=True), [PASS_ON, SDPA], store, gate=lambda setting, pattern: None)
    assert (plan.measured, plan.missing, plan.skipped) == (0, 2, 2)


def test_it_can_be_stopped_anywhere_and_goes_on(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    grid = config(patterns=["noncausal_self"])
    done: list[int] = []

    def stop() -> None:
        done.append(1)
        if len(done) == 4:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1.0)

    with pytest.raises(KeyboardInterrupt):
        efficiency(grid, [PASS_ON, SDPA], store, on_cell=stop)
    assert len(store.complete()) == 4
    summary = efficiency(grid, [PASS_ON, SDPA], store)
    assert (summary.measured, summary.skipped) == (12 - 4, 4)
    assert len(rows(store.frame(), metric="ratio")) == 8


def test_levels_phases_and_key_lengths_span_the_grid(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    measure = replace(
        MEASURE, replicates=1, levels=["op", "layer"], phases=["inference", "training_forward", "training"]
    )
    grid = config(patterns=["causal_cross"], lengths=[32], lengths_key=[16, 48], measure=measure)
    efficiency(grid, [SDPA], store)
    frame = store.frame()
    assert set(frame.status) == {"ok"}
    cells = frame.groupby(["level", "phase", "length_q", "length_kv"]).size()
    assert len(cells) == 2 * 3 * 2
    assert set(rows(frame, metric="saved_bytes").phase) == {"training_forward", "training"}


def test_a_change_of_what_matters_is_measured_anew(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    grid = config(patterns=["noncausal_self"], lengths=[32], measure=replace(MEASURE, replicates=1))
    assert efficiency(grid, [SDPA], store).measured == 2

    def missing(**changes: Any) -> int:
        return efficiency(replace(grid, dry_run=True, **changes), [SDPA], store).missing

    assert missing() == 0
    assert missing(measure=replace(MEASURE, replicates=3)) == 2
    assert missing(measure=replace(MEASURE, replicates=1, min_pairs=9)) == 1
    for changes in ({"dtype": "float64"}, {"threads": 2}, {"measure": replace(MEASURE, replicates=1, heads=4)}):
        assert missing(**changes) == 2
    assert sorted(store.frame().metric) == [
        "dense_equivalent_flops",
        "first_call_s",
        "flops",
        "parameters",
        "peak_extra_bytes",
        "ratio",
        "time_s",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patterns": ["noncausal"]}, "unknown pattern 'noncausal': did you mean"),
        ({"baselines": ["sdap"]}, "unknown baseline 'sdap': did you mean 'sdpa'"),
        ({"measure": replace(MEASURE, levels=["ops"])}, "unknown level 'ops': did you mean 'op'"),
        ({"measure": replace(MEASURE, phases=["train"])}, "unknown phase 'train'"),
        ({"measure": replace(MEASURE, memory_limit="2 elephants")}, "is not a size"),
        ({"lengths": [0]}, "length 0"),
        ({"lengths": []}, "lengths"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
    ],
)
def test_bad_input_is_named_before_anything_is_measured(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        efficiency(config(**changes), [SDPA], RecordStore(tmp_path))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_order_is_random_in_a_block_and_the_same_every_time(tmp_path: Path) -> None:
    grid = config(patterns=["noncausal_self"], lengths=[1, 2, 4, 8, 16], measure=replace(MEASURE, replicates=2))
    orders = [[(j.replicate, j.kind, j.workload.length_q) for j in plan(grid, [SDPA, PASS_ON])] for _ in range(2)]
    assert orders[0] == orders[1]
    assert [replicate for replicate, _, _ in orders[0]] == [0] * 20 + [1] * 10
    assert sorted(orders[0]) != orders[0]


def test_decoding_has_its_state_and_every_form_that_is_missing_a_reason(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    measure = replace(MEASURE, replicates=1, levels=["op", "layer", "model"], phases=["decode"])
    grid = config(patterns=["noncausal_self", "causal_self", "causal_cross"], lengths=[32], measure=measure)
    efficiency(grid, [SDPA], store)
    frame = store.frame()
    refused = frame[frame.status == "unsupported"]
    assert set(map(tuple, refused[["pattern", "level"]].to_numpy())) == {
        ("noncausal_self", "op"),
        ("noncausal_self", "layer"),
        ("noncausal_self", "model"),
        ("causal_self", "model"),
        ("causal_cross", "model"),
    }
    assert refused.reason.str.contains("decod").all()
    measured = frame[frame.status == "ok"]
    assert set(map(tuple, measured[["pattern", "level"]].to_numpy())) == {
        (pattern, level) for pattern in ("causal_self", "causal_cross") for level in ("op", "layer")
    }
    # Keys and values of 32 positions, 2 heads of 8, in float32.
    assert set(rows(measured, metric="state_bytes").value) == {2 * 32 * 2 * 8 * 4}
    assert rows(measured, metric="flops").empty


def test_a_model_costs_its_layers_and_its_feed_forward_layers(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    measure = replace(MEASURE, replicates=1, levels=["layer", "model"], phases=["training"])
    grid = config(patterns=["noncausal_self", "causal_cross"], lengths=[32], measure=measure)
    efficiency(grid, [SDPA], store)
    frame = store.frame()
    assert set(frame.status) == {"ok"}
    feed_forward = 2 * 2 * 32 * 16 * 64
    for pattern in grid.patterns:
        for metric in ("flops", "dense_equivalent_flops"):
            layer, model = (
                float(rows(frame, pattern=pattern, level=level, metric=metric).value.iloc[0])
                for level in ("layer", "model")
            )
            assert model == 2 * (layer + feed_forward)


def test_an_output_that_is_no_number_is_no_cost(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    grid = config(patterns=["noncausal_self"], lengths=[32], measure=replace(MEASURE, replicates=1))
    summary = efficiency(grid, [named("not_a_number", "NotANumber")], store, baselines={"sdpa": SDPA})
    found = rows(store.frame(), setting="not_a_number")
    lost = found[found.metric.isin(["time_s", "ratio"])]
    assert set(lost.status) == {"diverged"}
    assert lost.reason.str.contains("100 % of the output is not finite").all()
    assert summary.errors == 0


@pytest.mark.parametrize(("wanted", "processes"), [(None, 3), (1e9, 3), (1e-9, 5)])
def test_processes_are_added_while_the_ratio_is_not_known_well_enough(
    wanted: float | None, processes: int, tmp_path: Path
) -> None:
    store = RecordStore(tmp_path)
    measure = replace(MEASURE, replicates=3, half_width=wanted, max_replicates=5)
    grid = config(patterns=["noncausal_self"], lengths=[32], measure=measure)
    efficiency(grid, [PASS_ON], store, baselines={"sdpa": SDPA})
    ratios = rows(store.frame(), metric="ratio")
    assert sorted(ratios.replicate) == list(range(processes))
    again = efficiency(grid, [PASS_ON], store, baselines={"sdpa": SDPA})
    assert again.measured == 0


def test_a_crossing_is_closed_in_on(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    steady, growing = named("steady", "Steady"), named("growing", "Growing")
    measure = replace(MEASURE, replicates=1, refine=2)
    grid = config(patterns=["noncausal_self"], lengths=[32, 64, 256], baselines=["steady"], measure=measure)
    efficiency(grid, [growing], store, baselines={"steady": steady})
    # They are equal at 100: between 64 and 256 there is 128, then between 64 and 128 there is 91.
    assert sorted(set(rows(store.frame(), metric="ratio", setting="growing").length_q)) == [32, 64, 91, 128, 256]
    assert efficiency(grid, [growing], store, baselines={"steady": steady}).measured == 0


def test_threads_of_the_measurement_are_those_of_the_children(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    measure = replace(MEASURE, replicates=1, threads=2)
    efficiency(config(patterns=["noncausal_self"], lengths=[32], measure=measure), [SDPA], store)
    assert set(store.frame().threads) == {2}


def test_what_cannot_be_compiled_is_not_called_compiled(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    measure = replace(MEASURE, replicates=1, phases=["decode"], compile=True)
    efficiency(config(patterns=["causal_self"], lengths=[32], measure=measure), [SDPA], store)
    frame = store.frame()
    assert set(frame.status) == {"unsupported"}
    assert frame.reason.str.contains("not compiled").all()


@pytest.mark.slow
def test_compiled_layers_are_measured_and_their_compiling_is_in_the_first_call(tmp_path: Path) -> None:
    store = RecordStore(tmp_path)
    measure = replace(MEASURE, replicates=1, phases=["inference", "training"], compile=True, time_limit=300.0)
    efficiency(config(patterns=["noncausal_self"], lengths=[64], measure=measure), [LINEAR, SDPA], store)
    frame = store.frame()
    assert set(frame.status) == {"ok"}, frame[frame.status != "ok"].reason.tolist()
    assert frame.compiled.all()
    first, later = (frame[frame.metric == metric].value.min() for metric in ("first_call_s", "time_s"))
    # A compiler takes seconds, a layer of width 16 at length 64 less than a millisecond: by orders, not by timing.
    assert first > 10 * later


def test_implementations_are_rows_of_their_own(tmp_path: Path) -> None:
    settings, without = by_implementation([SDPA, LINEAR], ["auto", "math"])
    assert [setting.name for setting in settings] == ["sdpa", "sdpa[impl=math]", "linear"]
    assert without == {"math": ["linear"]}
    store = RecordStore(tmp_path)
    measure = replace(MEASURE, replicates=1, levels=["op"], heads=1)
    efficiency(config(patterns=["noncausal_self"], lengths=[512], measure=measure), settings, store)
    frame = store.frame()
    assert dict(zip(frame["setting"], frame["impl"], strict=True)) == {
        "sdpa": "auto",
        "sdpa[impl=math]": "math",
        "linear": "auto",
    }
    peaks = rows(frame, metric="peak_extra_bytes").set_index("setting")["value"]
    assert peaks["sdpa[impl=math]"] > 512**2 * 4 > 4 * peaks["sdpa"]
