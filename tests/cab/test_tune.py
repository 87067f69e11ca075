"""Searches: the better setting wins, on validation data only, from the records alone, whatever was killed meanwhile."""

import json
import random
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from cab.cli import main
from cab.compose import Composer
from cab.records import RecordStore, Status
from cab.report.evidence import read_evidence, sections
from cab.report.make import make_report
from cab.search_space import Between, Values
from cab.tune import take_apart, tell

SHORT = ["task=first_token", "attention=linear", "trainer.max_steps=40", "threads=1"]
RATES = "trainer.learning_rate=1e-6,3e-2"


def folder(results: Path) -> Path:
    (found,) = {path.parent.parent for path in results.glob("*/*/records/*.jsonl")}
    return found


def runs(place: Path, split: str) -> list[dict]:
    """The primary value of each run on a split, floors left out; fails where a run has two."""
    rows = [row for row in RecordStore(place).lines() if row["metric"] == "accuracy" and row["seed"] is not None]
    ok = Counter(row["run_key"] for row in rows if row["status"] == Status.OK)
    assert set(ok.values()) <= {1}
    return [row for row in rows if row["split"] == split]


def search_file(place: Path) -> dict:
    (path,) = (place / "searches").glob("*.json")
    return json.loads(path.read_text())


def tune(outside: Path, *words: str) -> list[str]:
    return ["tune", "--config-dir", str(outside), *SHORT, *words]


def test_the_better_of_two_wins_and_the_printed_command_scores_it_on_test_data(
    outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tune(outside, RATES, "trials=5")) == 0
    told = capsys.readouterr().out
    place = folder(in_tmp / "results")
    found = runs(place, "validation")
    assert len(found) == 2, "the space has two settings, however many trials are asked for"
    content = search_file(place)
    assert content["best"]["overrides"] == ["trainer.learning_rate=0.03"]
    by_key = {row["run_key"]: row["value"] for row in found}
    assert by_key[content["best"]["run_key"]] == max(by_key.values()) > min(by_key.values())
    assert {run["run_key"]: run["value"] for run in content["runs"]} == by_key
    assert runs(place, "test") == []

    command = shlex.split(told.splitlines()[-1])
    assert command[:2] == ["cab", "run"]
    assert main(command[1:]) == 0
    (row,) = runs(place, "test")
    assert row["run_key"] == content["chosen_run_key"]
    manifest = json.loads((place / "manifests" / f"{row['manifest']}.json").read_text())
    assert manifest["config"]["trainer"]["learning_rate"] == 0.03
    assert manifest["config"]["split"] == "test"


def test_each_trial_says_of_which_search_it_is(outside: Path, in_tmp: Path) -> None:
    assert main(tune(outside, RATES, "trials=2", "sampler_seed=4")) == 0
    place = folder(in_tmp / "results")
    for row in runs(place, "validation"):
        config = json.loads((place / "manifests" / f"{row['manifest']}.json").read_text())["config"]
        assert config["space"] == {"trainer.learning_rate": "1e-6,3e-2"}
        assert (config["trials"], config["sampler_seed"], config["split"]) == (2, 4, "validation")


def test_the_same_command_again_runs_nothing_and_more_trials_go_on_where_it_was(
    outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = ["trainer.learning_rate=tag(log,interval(1e-4,1e-1))", "task.batch_size=8", "attention=linear,performer"]
    given_space = [word for word in SHORT if not word.startswith("attention")]
    line = ["tune", "--config-dir", str(outside), *given_space]
    assert main([*line, *space, "trials=3"]) == 0
    place = folder(in_tmp / "results")
    first, rows = search_file(place), list(RecordStore(place).lines())
    assert main([*line, *space, "trials=3"]) == 0
    assert list(RecordStore(place).lines()) == rows
    assert search_file(place) == first
    # In what order options are given changes no proposal.
    assert main([*line, *reversed(space), "trials=5"]) == 0
    longer = max((json.loads(p.read_text()) for p in (place / "searches").glob("*.json")), key=lambda c: c["trials"])
    assert longer["runs"][:3] == first["runs"]
    assert len(runs(place, "validation")) == len({run["run_key"] for run in longer["runs"]}) == 5
    assert "5 trials: 5 ok" in capsys.readouterr().out


def test_a_killed_and_interrupted_search_ends_as_an_undisturbed_one(outside: Path, tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print(f"moments drawn from seed {seed}")
    rng = random.Random(seed)

    def line(results: Path) -> list[str]:
        fixed = ["task=first_token", "attention=performer", "threads=1", "trainer.max_steps=400"]
        space = ["attention.num_features=interval(4,64)", "trainer.learning_rate=tag(log,interval(1e-4,1e-1))"]
        saved = ["trainer.checkpoint_interval_s=0.3", f"results='{results}'", "trials=5"]
        return [sys.executable, "-m", "cab", "tune", "--config-dir", str(outside), *fixed, *space, *saved]

    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    assert subprocess.run(line(calm), capture_output=True).returncode == 0
    for already, number in ((1, signal.SIGKILL), (3, signal.SIGINT)):
        child = subprocess.Popen(line(stormy), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if stormy.exists() and len(list(stormy.glob("*/*/units/[!.]*.npz"))) > already:  # the floor has one too
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.8))
        child.send_signal(number)
        _, told = child.communicate(timeout=60)
        assert "Traceback" not in told
        if number == signal.SIGINT and child.returncode != 0:
            assert child.returncode == 130
            assert "give the same command again" in told
    done = subprocess.run(line(stormy), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "(recorded" in done.stderr
    contents = [search_file(folder(results)) for results in (calm, stormy)]
    for content in contents:
        content["fixed"] = [word for word in content["fixed"] if not word.startswith("results=")]
    assert contents[0] == contents[1]
    assert len(runs(folder(stormy), "validation")) == 5


BLIND = """

class Blind(FirstToken):
    def _forbid(self, split):
        if split == "test":
            raise RuntimeError("test data were read")

    def batches(self, split, seed, start=0):
        self._forbid(split)
        return super().batches(split, seed, start)

    def evaluate(self, model, split):
        self._forbid(split)
        return super().evaluate(model, split)

    def floors(self, split):
        self._forbid(split)
        return super().floors(split)

    def samples(self, model):
        self._forbid("test")
"""


def plug(outside: Path, place: Path, name: str, more: str, options: str = "") -> Path:
    """A plug-in folder with the outside task and a subclass of it."""
    (place / "task").mkdir(parents=True)
    (place / f"{name.lower()}.py").write_text((outside / "first_token.py").read_text() + more)
    (place / "task" / f"{name.lower()}.yaml").write_text(
        f"_target_: {name.lower()}.{name}\nsize: ${{size}}\nbatch_size: 8\n{options}"
    )
    return place


def test_no_test_data_are_read_by_a_search(outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = plug(outside, in_tmp / "plug", "Blind", BLIND)
    fixed = ["--config-dir", str(place), "task=blind", "attention=linear", "trainer.max_steps=5", "threads=1"]
    assert main(["tune", *fixed, RATES]) == 0
    assert "no samples" not in capsys.readouterr().out
    rows = list(RecordStore(folder(in_tmp / "results")).lines())
    assert {row["split"] for row in rows} == {"validation"}
    assert {row["setting"] for row in rows if row["seed"] is None} == {"floor:uniform"}
    assert {row["status"] for row in rows} == {"ok"}
    # The task does notice who reads them.
    assert main(["run", *fixed]) == 1
    assert "test data were read" in capsys.readouterr().out


def chosen_by(place: Path) -> set[str]:
    """What the cells of a report's first table say of how their settings were chosen."""
    table = make_report(place, figures=False).book.sections[0].patterns[0].main
    details = [detail for row in table.rows for cell in row.cells for detail in cell.details]
    return {text for name, text in details if name == "chosen by"}


def test_runs_on_validation_data_are_no_results_and_a_report_says_how_a_setting_was_chosen(
    outside: Path, in_tmp: Path
) -> None:
    fixed = ["--config-dir", str(outside), *SHORT]
    assert main(["check", "--config-dir", str(outside), "attentions=[linear]", "patterns=[causal_self]"]) == 0
    assert main(["run", *fixed, "trainer.learning_rate=0.03"]) == 0
    place = folder(in_tmp / "results")
    before = [section.rows for section in sections(read_evidence(place).rows)]
    assert chosen_by(place) == set()
    assert main(["tune", *fixed, RATES]) == 0
    assert [section.rows for section in sections(read_evidence(place).rows)] == before
    (search,) = (place / "searches").glob("*.json")
    said = "cab tune: the best of 2 trials by accuracy on validation data, over trainer.learning_rate=1e-6,3e-2"
    assert chosen_by(place) == {f"{said} (searches/{search.name})"}


def test_a_folder_of_searches_alone_has_a_page_without_results(outside: Path, in_tmp: Path) -> None:
    assert main(tune(outside, RATES)) == 0
    made = make_report(folder(in_tmp / "results"), figures=False)
    assert made.book.sections == ()


def test_all_trials_of_a_search_within_a_protocol_share_a_folder_that_is_not_the_board_s(
    outside: Path, in_tmp: Path
) -> None:
    assert main(tune(outside, RATES, "protocol=quick")) == 0
    place = folder(in_tmp / "results")
    assert place.parent.name.startswith("quick+")
    assert len(runs(place, "validation")) == 2
    # The chosen setting has a folder of its own, as its learning rate is not the protocol's, and there it says why.
    (other,) = {path.parent.parent for path in in_tmp.glob("results/*/*/searches/*.json")} - {place}
    assert search_file(other) == search_file(place)


FAULTS = """

class Faulty(FirstToken):
    def __init__(self, *, fault: str = "none", **options):
        super().__init__(**options)
        self.fault = fault

    def loss(self, model, batch):
        if self.fault == "memory":
            raise torch.OutOfMemoryError("no memory left")
        if self.fault == "infinite":
            return super().loss(model, batch) * float("inf")
        if self.fault == "broken":
            raise IndexError("out of range")
        return super().loss(model, batch)
"""


def test_trials_without_a_value_are_recorded_with_their_reason_and_the_search_goes_on(
    outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = plug(outside, in_tmp / "plug", "Faulty", FAULTS, "fault: none\n")
    line = ["tune", "--config-dir", str(place), "task=faulty", "trainer.max_steps=5", "threads=1", "trials=4"]
    line += ["attention=linear", "task.fault=none,memory,infinite,broken"]
    assert main(line) == 1, "an error is there that a repeat could mend"
    told = capsys.readouterr()
    assert "4 trials: 1 diverged, 1 error, 1 ok, 1 out of memory" in told.out
    assert "task.fault=none" in told.out
    assert "out of memory: no memory left" in told.err
    assert "IndexError: out of range" in told.err
    found = runs(folder(in_tmp / "results"), "validation")
    reasons = {row["status"]: row["reason"] for row in found}
    assert set(reasons) == {"ok", "error", "diverged", "out_of_memory"}
    assert main(line) == 1
    again = Counter(row["status"] for row in runs(folder(in_tmp / "results"), "validation"))
    assert again == {"ok": 1, "error": 2, "diverged": 1, "out_of_memory": 1}, "only the error is tried again"


def test_an_attention_without_the_pattern_is_a_trial_without_a_value(
    outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["tune", "--config-dir", str(outside), "task=first_token", "pattern=causal_self", "trainer.max_steps=5"]
    assert main([*line, "threads=1", "attention=mean_attention,linear"]) == 0
    told = capsys.readouterr()
    assert "2 trials: 1 ok, 1 unsupported" in told.out
    assert "attention=linear" in told.out
    assert main([*line, "threads=1", "attention=mean_attention,mean_attention"]) == 1
    assert "no trial has a value" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "learned"), [(Status.OUT_OF_MEMORY, True), (Status.DIVERGED, True), (Status.ERROR, False)]
)
def test_the_sampler_learns_from_what_has_no_value_but_not_from_errors(status: Status, learned: bool) -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), direction="maximize")
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    drawn = []
    for _ in range(80):
        proposal = study.ask(space)
        drawn.append(proposal.params["x"])
        fails = drawn[-1] > 0.5
        tell(study, proposal, status if fails else Status.OK, None if fails else 1.0)
    # All values are equal, so where to look follows from the failures alone. At random half would lie above.
    above = sum(x > 0.5 for x in drawn[40:])
    assert (above < 8) if learned else (above > 8)


MISTAKES = [
    ([], ["nothing to search", "'trainer.learning_rate=tag(log,interval(1e-4,1e-2))'"]),
    ([RATES, "tracker=wandb", "tracker.mode=onlin"], ["'onlin'", "did you mean 'online'"]),
    (["trainer.learning_rat=interval(0,1)"], ["'learning_rat'", "did you mean 'learning_rate'"]),
    (["attention.num_feature=4,8"], ["'num_feature'", "allowed"]),
    (["attention=linear,perfomer"], ["'perfomer'", "did you mean 'performer'"]),
    (["trainer.max_steps=1,many"], ["max_steps", "'many'"]),
    (["pattern=causal_self,noncausal_self"], ["pattern is fixed in a search", "trainer.OPTION"]),
    (["seed=1,2"], ["seed is fixed in a search"]),
    (["task=first_token,recall"], ["task is fixed in a search"]),
    (["task.size=interval(0,1)"], ["an interval is of numbers"]),
    (["trainer=interval(0,1)"], ["trainer is fixed in a search"]),
    (["trainer.max_steps=interval(0.5,2)"], ["takes whole numbers"]),
    (["trainer.learning_rate=interval(1e-2,1e-3)"], ["the smaller bound first"]),
    (["trainer.learning_rate=tag(log,interval(0,1))"], ["begins above 0"]),
    (["trainer.learning_rate=tag(lg,interval(0,1))"], ["'lg'", "did you mean 'log'"]),
    (["trainer.learning_rate=tag(log,range(1,9))"], ["interval(low,high)"]),
    (["trainer.learning_rate=range(3,1)"], ["no value at all"]),
    (["trainer.learning_rate=shuffle(1,2)"], ["leave shuffle out"]),
    (["trainer.learning_rate=1,2", "trainer.learning_rate=3"], ["trainer.learning_rate is given twice"]),
    ([RATES, "trials=0"], ["trials=0", "at least 1"]),
    ([RATES, "trials=few"], ["trials", "'few'"]),
    ([RATES, "trial=3"], ["'trial'", "did you mean 'trials'"]),
    ([RATES, "sampler_seed=-1"], ["sampler_seed=-1", "0 to"]),
    ([RATES, "split=test"], ["split=test", "validation"]),
    ([RATES, "+space.a=b"], ["space", "cannot be given"]),
    ([RATES, "hydra/launcher=joblib"], ["hydra/launcher=joblib", "one after the other"]),
    ([RATES, "task.batch_size=0"], ["batch_size=0"]),
    (["task.batch_size=interval(0,8)"], ["batch_size=0"]),
]


@pytest.mark.parametrize(("words", "told"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line_before_anything_is_trained(
    words: list[str], told: list[str], outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = [word for word in SHORT if word.split("=")[0] not in {given.split("=")[0] for given in words}]
    assert main(["tune", "--config-dir", str(outside), *fixed, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("cab: ")
    for part in told:
        assert part in line
    assert not list(in_tmp.glob("results/*/*/records/*"))


def test_settings_that_are_scored_on_other_examples_do_not_compare(
    outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tune(outside, "task.batch_size=4,8")) == 2
    assert "scored on other validation examples" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tune", "-m", RATES], "--multirun goes with run"),
        (["run", "-m", "hydra/sweeper=optuna"], "cab tune searches over options"),
        (["run", "hydra/sweeper=optuna"], "cab tune searches over options"),
        (["run", "-m", "hydra.sweeper.max_batch_size=2"], "cab tune searches over options"),
        (["run", "-m", "trainer.learning_rate=interval(0,1)"], "cab tune searches it"),
        (["run", "split=tset"], "did you mean 'test'"),
    ],
)
def test_what_a_sweep_does_not_do_names_the_search(
    words: list[str], told: str, outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words[0], "--config-dir", str(outside), *SHORT, *words[1:]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_without_optuna_the_extra_is_named(
    outside: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(tune(outside, RATES)) == 2
    assert "pip install 'cab-attention[tune]'" in capsys.readouterr().err


def test_a_dry_run_shows_how_far_the_records_go_and_records_nothing(
    outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "trainer.learning_rate=tag(log,interval(1e-4,1e-1))"
    assert main(tune(outside, space, "trials=2")) == 0
    place = folder(in_tmp / "results")
    before = sorted(path for path in place.rglob("*") if path.is_file())
    capsys.readouterr()
    assert main(tune(outside, space, "trials=6", "dry_run=true")) == 0
    told = capsys.readouterr().out
    assert space in told
    assert "attention=linear" in told
    assert "6 trials: 2 recorded, 4 to run" in told
    assert sorted(path for path in place.rglob("*") if path.is_file()) == before


def test_the_config_shows_the_space(outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*tune(outside, RATES), "--cfg", "job"]) == 0
    told = capsys.readouterr().out
    assert "split: validation" in told
    assert "space:\n  trainer.learning_rate: 1e-6,3e-2" in told


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("attention.num_features=choice(64,128)",
         Values("attention.num_features", "choice(64,128)", ("64", "128"), False)),
        ("trainer.accumulate=range(1,4)", Values("trainer.accumulate", "range(1,4)", ("1", "2", "3"), True)),
        ("attention=glob(lin*)", Values("attention", "glob(lin*)", ("linear", "linformer"), False)),
        ("attention.num_features=interval(8,64)",
         Between("attention.num_features", "interval(8,64)", 8, 64, log=False, whole=True)),
        ("trainer.max_steps=tag(log,interval(8,64))",
         Between("trainer.max_steps", "tag(log,interval(8,64))", 8, 64, log=True, whole=True)),
        ("trainer.learning_rate=interval(0,1)", Between("trainer.learning_rate", "interval(0,1)", 0, 1, log=False)),
    ],
)  # fmt: skip
def test_the_grammar_of_sweeps_says_the_space(composer: Composer, word: str, expected: Values | Between) -> None:
    fixed = ["task=first_token", *([] if word.startswith("attention=") else ["attention=performer"])]
    asked = take_apart(composer, [*fixed, word, "trials=3"])
    assert asked.space.dimensions == (expected,)
    assert asked.fixed == (*fixed, "trials=3")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_drawn_number_comes_back_to_the_bit(drawn: float) -> None:
    """The printed command has to train with what the trial was trained with."""
    written = Between("a", "", 0, 1, log=False).written(drawn)
    assert OverridesParser.create().parse_override(f"a={written}").value() == drawn
