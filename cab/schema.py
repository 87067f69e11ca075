"""Schemas of the configs: one dataclass per verb and per group of ours, so that a typo or a type fails at once.

Hydra composes the YAML of ``conf/`` against them. Attention and task nodes stay free (``_target_`` and options):
outsiders write them without a dataclass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class Measure:
    """How costs are measured (``conf/measure``).

    Attributes:
        levels: of ``op`` (q, k, v given), ``layer`` (with projections), ``model`` (two transformer blocks).
        phases: of ``inference``, ``training_forward``, ``training`` and ``decode`` (one position more, from a state).
        batch, heads, head_dim: of the inputs; the width of a layer is ``heads * head_dim``.
        threads: torch's, in each process; None: as ``threads`` of the verb says.
        replicates: processes per cell and baseline; the process is the unit of replication.
        half_width: more processes are run while the half-width of the 95 % interval of the time ratio is above this
            share of the ratio; None: never.
        max_replicates: the most processes for that, per cell and baseline.
        refine: how many times a crossing of the ratio is closed in on, with a length between its neighbours.
        min_time_s: seconds of timed calls per process, mechanism and baseline together; ended by a whole pair.
        warmup_pairs: pairs of calls before those that count, at the least: the first two are slow by 5 to 10 %.
        warmup_time_s: seconds of calls before, at the most beyond ``warmup_pairs``; less once times have settled.
        min_pairs: timed pairs per process, also where they take longer than ``min_time_s``; one more if that is odd.
        time_limit: seconds per child process; past it the cell is ``timeout``.
        memory_limit: of the child's extra memory, such as ``2GiB``; past it the cell is ``out_of_memory``.
        compile: ``torch.compile`` the layer.
    """

    levels: list[str] = field(default_factory=lambda: ["layer"])
    phases: list[str] = field(default_factory=lambda: ["inference"])
    batch: int = 1
    heads: int = 8
    head_dim: int = 64
    threads: int | None = None
    replicates: int = 3
    half_width: float | None = None
    max_replicates: int = 15
    refine: int = 0
    min_time_s: float = 0.3
    warmup_pairs: int = 3
    warmup_time_s: float = 0.3
    min_pairs: int = 6
    time_limit: float = 60.0
    memory_limit: str | None = None
    compile: bool = False


@dataclass
class Trainer:
    """How a run trains (``conf/trainer``); None means: as the task's recipe at its size says.

    ``accumulate`` are the batches whose mean gradient makes one update. ``activation_checkpointing`` computes each
    block's activations again in the backward pass instead of keeping them: less memory, one more forward pass.
    """

    max_steps: int | None = None
    learning_rate: float | None = None
    accumulate: int | None = None
    activation_checkpointing: bool | None = None
    checkpoint_interval_s: float = 30.0
    log_every: int = 10


@dataclass
class Finetune:
    """Training that follows where trained weights were taken over.

    ``learning_rate`` None is a tenth of the recipe's.
    """

    steps: int = 0
    learning_rate: float | None = None


@dataclass
class Protocol:
    """A named, versioned set of cells (``conf/protocol``); ``fit`` is that of its report (see :class:`Report`).

    ``scored_patterns`` are, by task, the patterns in which it is run, where that is not all of its card's. ``free`` are
    keys of a run that the protocol leaves to each of its cells.
    """

    name: str = MISSING
    version: int = MISSING
    attentions: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    patterns: list[str] = field(default_factory=list)
    scored_patterns: dict[str, list[str]] = field(default_factory=dict)
    size: str = "tiny"
    seeds: list[int] = field(default_factory=lambda: [1])
    lengths: list[int] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)
    fit: str = "measured"
    free: list[str] = field(default_factory=list)


@dataclass
class Common:
    """What every verb takes."""

    results: str = "results"
    device: str = "auto"
    dtype: str = "float32"
    threads: int | None = None
    dry_run: bool = False


@dataclass
class Efficiency(Common):
    """``cab efficiency``: cost of attentions x patterns x lengths, each paired with ``sdpa`` and ``softmax``.

    ``attentions`` are settings by name or wildcard, or ``all``. ``lengths_key`` are the key lengths of the cross
    patterns (None: equal to the query's). ``impl`` are implementations, of those that a mechanism offers (``auto``: the
    setting as it is); each is a row of its own, with a certificate of its own. ``fit`` is that of the report at the end
    (see :class:`Report`). A ``protocol`` gives the grid and how it is measured; any part of its grid belongs to it.
    """

    attentions: list[str] = field(default_factory=lambda: ["all"])
    patterns: list[str] = field(default_factory=lambda: ["all"])
    lengths: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048])
    lengths_key: list[int] | None = None
    impl: list[str] = field(default_factory=lambda: ["auto"])
    baselines: list[str] = field(default_factory=lambda: ["sdpa", "softmax"])
    protocol: Protocol = field(default_factory=lambda: Protocol(name="adhoc", version=1))
    fit: str = "measured"
    measure: Measure = field(default_factory=Measure)


@dataclass
class Check(Common):
    """``cab check``: conformance tests T1 to T14 of settings, and their certificates.

    ``matrix`` is a file for the support matrix of these settings, as CSV.
    """

    attentions: list[str] = field(default_factory=lambda: ["all"])
    patterns: list[str] = field(default_factory=lambda: ["all"])
    protocol: str = "adhoc"
    matrix: str | None = None


@dataclass
class Report(Common):
    """``cab report``: pages from records. ``folder`` is one ``<results>/<protocol>/<hardware>``; default: all found.

    ``results=[A,B]`` compares two folders of results, of two machines or versions: ``comparison.md`` in B.
    ``fit`` is ``measured``, or ``cab2023`` for CAB's own fit of efficiency lengths, and what CAB published, beside the
    measured ones; None: as the command asked for that made the newest records. ``source`` is ``records``, or
    ``published`` for the numbers of papers: CAB's leaderboards made again from its task metrics, and its known errors.
    """

    results: Any = "results"
    source: str = "records"
    folder: str | None = None
    fit: str | None = None


@dataclass
class Run(Common):
    """``cab run``: one task with one attention in the slots of one pattern.

    ``pattern`` None is the task's primary one. ``slots`` is ``one`` (the pattern's slots, exact attention in the
    others) or ``all`` (every slot that the mechanism supports). ``baseline`` is the exact attention of the others.
    ``devices`` train together (DDP): an update's ``trainer.accumulate`` batches are shared out among them.
    ``split`` is ``test``, or ``validation`` for runs that choose between settings: they read no test data, and no
    table of a report shows them.
    ``dropin`` is an exact setting: the run trains with it first, puts ``attention`` in the place of it, and goes on as
    ``finetune`` says, by default not at all.
    ``sweep`` is the group that trackers show a run in; ``-m`` and ``cab leaderboard`` fill it in.
    """

    task: Any = MISSING
    attention: Any = MISSING
    protocol: Protocol = field(default_factory=Protocol)
    trainer: Trainer = field(default_factory=Trainer)
    tracker: Any = None
    pattern: str | None = None
    size: str = "tiny"
    seed: int = 1
    slots: str = "one"
    baseline: str = "sdpa"
    devices: int = 1
    dropin: str | None = None
    finetune: Finetune = field(default_factory=Finetune)
    split: str = "test"
    sweep: str | None = None


@dataclass
class StudyTask:
    """A task of a drop-in study, with options, and the numbers of steps after which it is scored."""

    task: str = MISSING
    options: dict[str, Any] = field(default_factory=dict)
    finetune_steps: list[int] = field(default_factory=lambda: [0])


@dataclass
class Ladder:
    """How a mechanism spends a budget: the ``option`` is budget x length / weights, rounded, at least 1.

    ``weights`` are those that one unit of the option costs per query, by pattern; patterns without are left out.
    ``per_log_length``: times ln(length). ``fixed`` are other options.
    """

    option: str = MISSING
    weights: dict[str, float] = MISSING
    per_log_length: bool = False
    fixed: dict[str, Any] = field(default_factory=dict)


@dataclass
class Experiment:
    """A drop-in study (``conf/experiment``): ``plain`` are settings as they are, ``ladders`` go through the budgets."""

    name: str = MISSING
    version: int = MISSING
    dropin: str = "softmax"
    size: str = "tiny"
    seeds: list[int] = field(default_factory=lambda: [1])
    budgets: list[float] = field(default_factory=lambda: [1.0])
    tasks: list[StudyTask] = field(default_factory=list)
    plain: list[str] = field(default_factory=list)
    ladders: dict[str, Ladder] = field(default_factory=dict)


@dataclass
class Dropin(Common):
    """``cab dropin``: other attentions in trained models, at a ladder of budgets, without and with fine-tuning.

    ``attentions`` and ``tasks`` are parts of the experiment by name or wildcard. ``finetune`` are the only numbers of
    steps that are run, where given. Costs are measured as ``measure`` says, per setting at each task's length and
    heads; ``costs=false`` leaves them out.
    """

    experiment: Experiment = field(default_factory=Experiment)
    measure: Measure = field(default_factory=Measure)
    trainer: Trainer = field(default_factory=Trainer)
    tracker: Any = None
    attentions: list[str] = field(default_factory=lambda: ["all"])
    tasks: list[str] = field(default_factory=lambda: ["all"])
    budgets: list[float] = field(default_factory=lambda: [1.0])
    seeds: list[int] = field(default_factory=lambda: [1])
    finetune: list[int] | None = None
    costs: bool = True


@dataclass
class Tune(Run):
    """``cab tune``: a search for the best values of some options, by the task's primary metric on validation data.

    What the command line gives several values (``choice``, ``range``, ``interval`` of Hydra's grammar, or a list) is
    the ``space``, by key; all else is fixed. ``trials`` is the budget: how many settings are trained. ``sampler_seed``
    seeds the proposals, ``seed`` is that of every training.
    """

    split: str = "validation"
    trials: int = 20
    sampler_seed: int = 0
    space: dict[str, str] = field(default_factory=dict)


@dataclass
class Leaderboard(Common):
    """``cab leaderboard``: certificates, costs and task runs of a protocol, and their report."""

    protocol: Protocol = field(default_factory=Protocol)
    measure: Measure = field(default_factory=Measure)
    trainer: Trainer = field(default_factory=Trainer)
    tracker: Any = None
    attentions: list[str] = field(default_factory=lambda: ["all"])
    patterns: list[str] = field(default_factory=lambda: ["all"])
    tasks: list[str] = field(default_factory=lambda: ["all"])
    lengths: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048])
    seeds: list[int] = field(default_factory=lambda: [1])
    baseline: str = "sdpa"
    baselines: list[str] = field(default_factory=lambda: ["sdpa", "softmax"])


@dataclass
class Listing(Common):
    """``cab list``: settings of attentions and tasks.

    ``format`` is ``text``, or ``markdown`` for the support matrix alone.
    """

    attentions: list[str] = field(default_factory=lambda: ["all"])
    tasks: list[str] = field(default_factory=lambda: ["all"])
    format: str = "text"


@dataclass
class Doctor(Common):
    """``cab doctor``: what this machine can do, and what is missing."""


@dataclass
class Submit(Common):
    """``cab submit``: packs the records of ``folder`` (one ``<results>/<protocol>/<hardware>``) into ``out``.

    ``name`` is who submits. ``unpack`` puts a pack under ``results``; ``verify`` compares what was unpacked with own
    records, ``against``.
    """

    folder: str | None = None
    name: str | None = None
    out: str | None = None
    unpack: str | None = None
    verify: str | None = None
    against: str | None = None


VERBS = {
    "run": Run,
    "tune": Tune,
    "leaderboard": Leaderboard,
    "dropin": Dropin,
    "efficiency": Efficiency,
    "check": Check,
    "report": Report,
    "list": Listing,
    "doctor": Doctor,
    "submit": Submit,
}
GROUPS = {"experiment": Experiment, "measure": Measure, "protocol": Protocol, "trainer": Trainer}
