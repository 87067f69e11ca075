"""The help texts: what each verb answers, and three examples that work when pasted."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import dedent


@dataclass(frozen=True)
class VerbHelp:
    """One line, what it does, and examples as (command, what it shows)."""

    summary: str
    text: str
    examples: tuple[tuple[str, str], ...]


VERBS: dict[str, VerbHelp] = {
    "leaderboard": VerbHelp(
        "certificates, costs and task runs of a protocol, and their report",
        """\
        Runs what a protocol names and is not measured yet, and rebuilds the page as results come in.
        Keys: protocol=quick  attentions=[...]  patterns=[...]  tasks=[...]  lengths=[...]  results=DIR
              device=auto|cpu|cuda  dtype=float32|bfloat16  threads=N  tracker=none|wandb|tensorboard  dry_run=true""",
        (
            ("cab leaderboard protocol=quick", "the first look: 20 minutes on 2 cores"),
            ("cab leaderboard protocol=quick dry_run=true", "what it would run"),
            ("cab leaderboard 'attentions=[softmax,sdpa,linear]' 'tasks=[recall]'", "a part of it"),
        ),
    ),
    "run": VerbHelp(
        "train and evaluate one task with one attention; -m sweeps",
        """\
        Keys: task=NAME  attention=NAME  pattern=noncausal_self|causal_self|noncausal_cross|causal_cross
              seed=N  size=tiny  slots=one|all  trainer.max_steps=N  attention.OPTION=VALUE  task.OPTION=VALUE
              results=DIR  device=  devices=N  dtype=  threads=  tracker=none|wandb|tensorboard
              dropin=softmax finetune.steps=N (the attention in a model that was trained with another)
        With -m, values separated by commas are swept over, and what is complete is not run again.""",
        (
            ("cab run task=recall attention=performer pattern=causal_self seed=1", "one run"),
            ("cab run -m task=recall,lm attention=linear,performer pattern=causal_self seed=1,2", "eight runs"),
            ("cab run task=lm attention=performer attention.num_features=64 trainer.max_steps=50", "overrides"),
        ),
    ),
    "tune": VerbHelp(
        "search for the best values of some options, on validation data",
        """\
        Keys: those of cab run, and trials=N (20: how many settings are trained)  sampler_seed=N (0)
        What gets several values is searched, all else is fixed:
              attention.OPTION=choice(a,b)         one of them, in no order (a,b and glob(a*) say the same)
              trainer.accumulate=range(1,5)        1 to 4, in their order
              task.OPTION=interval(0,0.5)          any number between; whole where the option is
              trainer.learning_rate=tag(log,interval(1e-4,1e-2))
        The task's primary metric on validation data decides; test data are not scored. The last lines give the
        command that scores the best setting on test data. The same command goes on where it was; with more trials it
        goes further. Needs pip install 'cab-attention[tune]'.""",
        (
            (
                "cab tune task=recall attention=performer 'attention.num_features=choice(32,64,128)' "
                "'trainer.learning_rate=tag(log,interval(1e-4,1e-2))' trials=20",
                "two options",
            ),
            (
                "cab tune task=recall attention=linear,performer,softmax trainer.max_steps=50 trials=3",
                "which attention",
            ),
            (
                "cab tune task=recall 'trainer.learning_rate=tag(log,interval(1e-4,1e-2))' trials=20 dry_run=true",
                "the space, what is fixed, and how far the records go",
            ),
        ),
    ),
    "dropin": VerbHelp(
        "other attentions in trained models, without training again: quality against memory and time",
        """\
        Trains each task of a study once with exact attention, puts every setting in the place of it, at a ladder of
        budgets, scores it as it is and after fine-tuning, and measures its cost. See docs/DROPIN.md.
        Keys: experiment=smyrf_dropin  attentions=[...]  tasks=[...]  budgets=[1.0,0.5]  seeds=[1]  finetune=[0,100]
              costs=true|false  results=DIR  device=  dtype=  threads=  tracker=  dry_run=true  hydra/launcher=""",
        (
            ("cab dropin experiment=smyrf_dropin", "the whole study"),
            ("cab dropin 'tasks=[retrieval]' 'attentions=[softmax,smyrf,uniform]' 'finetune=[0]'", "a part of it"),
            ("cab dropin dry_run=true", "what it would run"),
        ),
    ),
    "efficiency": VerbHelp(
        "time, memory and work of attentions by length, paired with exact attention",
        """\
        Keys: attentions=[...]  patterns=[...]  lengths=[...]  lengths_key=[...]  results=DIR  device=  dtype=  threads=
              protocol=NAME (its grid, or a part of it)  fit=measured|cab2023  impl=[auto,math]
              measure.levels=[layer]  measure.phases=[inference]  measure.batch=  measure.heads=  measure.head_dim=
              measure.threads=  measure.replicates=  measure.time_limit=  measure.memory_limit=2GiB
              measure.half_width=0.03  measure.refine=2  measure.compile=true""",
        (
            ("cab efficiency 'attentions=[linear,performer]' 'lengths=[256,512]'", "two mechanisms, all patterns"),
            (
                "cab efficiency 'attentions=[smyrf]' 'patterns=[noncausal_cross]' 'lengths=[512]' 'lengths_key=[2048]'",
                "different query and key lengths",
            ),
            ("cab efficiency 'attentions=[softmax]' 'measure.levels=[op]' 'lengths=[1024]'", "without projections"),
        ),
    ),
    "check": VerbHelp(
        "conformance tests T1 to T14, and certificates",
        """\
        Keys: attentions=[...] (settings, wildcards, or the dotted path of a class)  patterns=[...]  results=DIR
        matrix=FILE (the support matrix of these settings, as CSV)""",
        (
            ("cab check 'attentions=[performer]'", "one mechanism"),
            ("cab check attentions=all", "the whole zoo"),
            ("cab check 'attentions=[attention_zoo.sdpa.Sdpa]' 'patterns=[causal_self]'", "a class by its path"),
        ),
    ),
    "report": VerbHelp(
        "leaderboard.md, index.html and figures from records",
        """\
        Reads records only; the same records give the same bytes.
        Keys: results=DIR (every folder below it that holds records)  folder=DIR (only this one)
              fit=measured|cab2023  source=records|published  dry_run=true""",
        (
            ("cab report", "all that stands under results/"),
            ("cab report source=published", "numbers of papers: CAB's leaderboards made again from its task metrics"),
            ("cab report --cfg job", "its keys"),
        ),
    ),
    "list": VerbHelp(
        "attention settings and tasks",
        """\
        Keys: attentions=[...]  tasks=[...]  (names and wildcards)  format=text|markdown
        What an attention supports is shown as proved where a certificate of the present code says so: one under
        results=DIR, or the one that comes with CAB.""",
        (
            ("cab list", "everything"),
            ("cab list 'attentions=[\"s*\"]' 'tasks=[]'", "settings that begin with s"),
            ("cab list 'attentions=[]'", "tasks only"),
        ),
    ),
    "submit": VerbHelp(
        "packs of records, to hand in or to put beside your own",
        """\
        Keys: folder=DIR name=WHO [out=FILE] (packs one <results>/<protocol>/<hardware>)
              unpack=FILE results=DIR (checks a pack, and puts it into a folder of its own)
              verify=DIR against=DIR (compares what was unpacked with records of yours)""",
        (
            ("cab submit folder=results/quick/HARDWARE name=Ada", "a ZIP archive with every record and its proof"),
            (
                "cab submit unpack=quick-HARDWARE.zip results=results",
                "its page says who, and that it was not run again",
            ),
            ("cab submit verify=results/quick/A-by-ada against=results/quick/A", "whether an own run bears it out"),
        ),
    ),
    "doctor": VerbHelp(
        "what this machine can do, what is missing, and the command that gets it",
        """\
        Keys: results=DIR  device=""",
        (
            ("cab doctor", "this machine"),
            ("cab doctor results=results", "and whether that folder can be written"),
            ("cab doctor device=cpu", "as if there were no GPU"),
        ),
    ),
}


def overview() -> str:
    """``cab --help``."""
    verbs = "\n".join(f"  {name:<12} {verb.summary}" for name, verb in VERBS.items())
    return (
        "cab: which efficient attention keeps quality, in each of the four attention patterns,\n"
        "and from which length it pays on this machine.\n\n"
        f"usage: cab VERB [KEY=VALUE ...] [flags]\n\n{verbs}\n\n"
        "flags of every verb:\n"
        "  --help, -h            what it does, and examples\n"
        "  --cfg job, -c job     print the config and stop; with --resolve, interpolations filled in\n"
        "  --config-dir DIR      configs and modules of your own, beside ours\n"
        "  --multirun, -m        (run) sweep over comma-separated values\n\n"
        'shell completion: eval "$(cab -sc install=bash)"   (or zsh, fish)'
    )


def page(verb: str) -> str:
    """``cab VERB --help``."""
    entry = VERBS[verb]
    examples = "\n".join(f"  {command}\n      # {what}" for command, what in entry.examples)
    return f"cab {verb}: {entry.summary}\n\n{dedent(entry.text)}\n\nexamples:\n{examples}"
