"""``cab efficiency``: what attentions cost, by pattern and length, each paired with the baselines.

A *cell* is (setting, pattern, query length, key length, level, phase). It takes ``replicates`` children per baseline,
which time mechanism and baseline in turns, and one child for memory and work. The first baseline's children
also give the mechanism's own time. Each child is one unit of work with a run key of its own: what has a record is
not done again, so that the grid can be stopped at any moment, and goes on where it was.

Order is random inside a block of one replicate of everything, the same in every run: drift of the machine hits all
cells alike, and after the first block there is a value for each.

Then, where the config asks for it, a cell gets more processes while its ratio's interval is too wide (the stopping rule
looks at the ratio, never at a time), and lengths are added between two neighbours where the ratio passes one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from attention_zoo.contract import Pattern, Unsupported
from attention_zoo.errors import UnknownName
from cab.arrivals import Arrivals
from cab.claims import claimed
from cab.device import resolve_device, resolve_dtype
from cab.device_lock import device_held
from cab.errors import blame_user
from cab.measure.children import count_work, memory_and_work, time_pair
from cab.measure.environment import hardware_id, write_manifest
from cab.measure.isolate import IsolatedRunner, Outcome
from cab.measure.memory import parse_bytes
from cab.measure.progress import Progress
from cab.measure.timing import PairedTimes
from cab.measure.workload import LEVELS, PHASES, Workload
from cab.records import RETRIED, Record, RecordStore, Status, now
from cab.schema import Efficiency
from cab.settings import Setting
from cab.source_hash import source_hash
from cab.stats.intervals import ratio_interval

T = TypeVar("T")
Gate = Callable[[Setting, Pattern], str | None]
UNITS = {
    "time_s": "s",
    "first_call_s": "s",
    "ratio": "1",
    "peak_extra_bytes": "bytes",
    "saved_bytes": "bytes",
    "state_bytes": "bytes",
    "flops": "FLOP",
    "dense_equivalent_flops": "FLOP",
    "parameters": "1",
}


@dataclass(frozen=True)
class Summary:
    """What one call did: children run, those that had records already, those left (a dry run), how the first ended."""

    measured: int
    skipped: int
    missing: int
    ended: Mapping[Status, int] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        """Children whose failure a repeat might mend."""
        return sum(self.ended.get(status, 0) for status in RETRIED)

    def __str__(self) -> str:
        ended = ", ".join(f"{count} {status}" for status, count in sorted(self.ended.items()))
        left = f", {self.missing} to do" if self.missing else ""
        return f"{self.measured} measured{f' ({ended})' if ended else ''}, {self.skipped} complete before{left}"


@dataclass(frozen=True)
class Job:
    """One child: paired times with a baseline, or memory and work; or ``blank``, a reason why there is none."""

    kind: Literal["time", "memory", "blank"]
    workload: Workload
    replicate: int
    baseline: Setting | None = None
    blank: tuple[Status, str] | None = None


def efficiency(
    config: Efficiency,
    settings: Sequence[Setting],
    store: RecordStore,
    *,
    baselines: Mapping[str, Setting] | None = None,
    gate: Gate | None = None,
    on_cell: Callable[[], None] | None = None,
) -> Summary:
    """Measures what has no record yet.

    Args:
        settings: the mechanisms; their names tell them apart.
        baselines: by the names in ``config.baselines``; those among ``settings`` need not be given again. The memory of
            all baselines is measured too, as the ratio of two peaks needs both.
        gate: a reason why a setting must have no value in a pattern (no certificate), or None.
        on_cell: called after each child, when its records are written.

    Raises:
        ValueError: for unknown levels, phases, patterns, baselines and sizes, before anything is measured.
    """
    with blame_user():
        grid = _Grid(config, settings, baselines or {}, gate)
        memory_limit = None if config.measure.memory_limit is None else parse_bytes(config.measure.memory_limit)
    arrivals = Arrivals(store)
    arrivals.new()
    arrived: dict[str, str] = {}  # since the plan was made
    complete = store.complete()
    jobs = list(grid.jobs())
    todo = [(key, job) for job in jobs if (key := grid.run_key(job)) not in complete]
    skipped = len(jobs) - len(todo)
    if config.dry_run:
        return Summary(0, skipped, len(todo))
    known = store.lines() if grid.goes_further else ()
    ratios = {row["run_key"]: float(row["value"]) for row in known if row["metric"] == "ratio" and row["value"]}
    ended: Counter[Status] = Counter()
    tried = set(complete)
    manifest: str | None = None
    with IsolatedRunner(threads=grid.threads, fresh=grid.device.startswith("cuda"), preload=grid.preload) as runner:
        child = _Child(runner, config, memory_limit)
        what = "efficiency"
        while True:
            for key, job in _with_progress(what, todo):
                tried.add(key)
                manifest = manifest or write_manifest(store.folder, grid.device, dataclasses.asdict(config))
                with claimed(store.folder, key), device_held(grid.device, alone=job.kind != "blank"):
                    arrived |= arrivals.new()
                    if key in arrived and (others := store.final(key)):
                        # Another process on the same folder was faster.
                        for row in others:
                            if row["metric"] == "ratio" and row["value"]:
                                ratios[key] = float(row["value"])
                        skipped += 1
                        continue
                    started_at = now()
                    ending = child.run(job)
                    if ending.times is not None:
                        store.write_units(key, _raw(ending.times))
                        ratios[key] = ending.times.ratio
                    columns = {**grid.columns(job), "run_key": key, "started_at": started_at, "manifest": manifest}
                    store.append(*(_record(value, columns, ending.duration_s) for value in ending.values))
                    ended[ending.status] += 1
                if on_cell is not None:
                    on_cell()
            what, further = grid.further(ratios)
            todo = [(key, job) for job in further if (key := grid.run_key(job)) not in tried]
            if not todo:
                break
    return Summary(sum(ended.values()), skipped, 0, dict(ended))


def _with_progress(what: str, items: Sequence[T]) -> Iterator[T]:
    """The items, with a line on what is left while they are worked on; silent where there are none."""
    if not items:
        return
    progress = Progress(what, len(items))
    try:
        for item in items:
            yield item
            progress.advance()
    finally:
        progress.close()


def plan(
    config: Efficiency,
    settings: Sequence[Setting],
    *,
    baselines: Mapping[str, Setting] | None = None,
    gate: Gate | None = None,
) -> list[Job]:
    """All jobs of :func:`efficiency` in their order, whether they have records or not."""
    return list(_Grid(config, settings, baselines or {}, gate).jobs())


class _Grid:
    """The resolved config: which jobs there are, their order and their keys."""

    def __init__(
        self, config: Efficiency, settings: Sequence[Setting], baselines: Mapping[str, Setting], gate: Gate | None
    ) -> None:
        self.config = config
        self.settings = {setting.name: setting for setting in settings}
        known = {**self.settings, **baselines}
        self.baselines = [_known("baseline", known, name) for name in config.baselines]
        self.gate = gate
        self.device = resolve_device(config.device)
        resolve_dtype(config.dtype)
        self.hardware = hardware_id(self.device)
        self.threads = config.measure.threads or config.threads or torch.get_num_threads()
        for name in config.measure.levels:
            _known("level", dict.fromkeys(LEVELS), name)
        for name in config.measure.phases:
            _known("phase", dict.fromkeys(PHASES), name)
        names = [p.value for p in Pattern] if "all" in config.patterns else config.patterns
        self.patterns = [_known("pattern", {p.value: p for p in Pattern}, name) for name in names]
        _require_named(config)
        _require_in_range(config)
        self._hashes: dict[tuple[str, ...], str] = {}
        self._gated: dict[tuple[str, Pattern], str | None] = {}

    def jobs(self) -> Iterator[Job]:
        """What is planned: blanks first, as they cost nothing; then block after block."""
        workloads: list[Workload] = []
        for workload in self._all_workloads():
            blank = self._blank(workload)
            if blank is None:
                workloads.append(workload)
            else:
                yield Job("blank", workload, 0, blank=blank)
        extra = [baseline for baseline in self.baselines if baseline.name not in self.settings]
        traced = [workload for baseline in extra for workload in self._workloads(baseline) if workload.refusal is None]
        yield from self._blocks(workloads, traced)

    def _blocks(self, workloads: Sequence[Workload], traced: Sequence[Workload] = ()) -> Iterator[Job]:
        """Every workload with every baseline, block after block; memory in the first one, that of ``traced`` too."""
        for replicate in range(self.config.measure.replicates):
            block = [Job("time", w, replicate, baseline) for w in workloads for baseline in self.baselines]
            if replicate == 0:
                block += [Job("memory", workload, 0) for workload in (*workloads, *traced)]
            random.Random(replicate).shuffle(block)
            yield from block

    @property
    def goes_further(self) -> bool:
        """Whether the config asks for anything beyond the plan."""
        return self.config.measure.half_width is not None or self.config.measure.refine > 0

    def further(self, ratios: Mapping[str, float]) -> tuple[str, list[Job]]:
        """What the ratios so far, by run key, ask for beyond the plan: more processes, then lengths near a crossing."""
        if not self.goes_further:
            return "", []
        timed = [w for w in self._all_workloads() if self._blank(w) is None]
        between, missing = self._refined(timed, ratios)
        wide = [
            Job("time", workload, len(samples), baseline)
            for workload in (*timed, *between)
            for baseline in self.baselines
            if self._too_wide(samples := self._samples(workload, baseline, ratios))
        ]
        if wide:
            return "more processes for wide intervals", wide
        return "lengths near crossings", list(self._blocks(missing))

    def _samples(self, workload: Workload, baseline: Setting, ratios: Mapping[str, float]) -> list[float]:
        """The ratios of the first processes of a cell, up to the first without one."""
        found = []
        for replicate in range(max(self.config.measure.replicates, self.config.measure.max_replicates)):
            value = ratios.get(self.run_key(Job("time", workload, replicate, baseline)))
            if value is None:
                break
            found.append(value)
        return found

    def _too_wide(self, samples: Sequence[float]) -> bool:
        measure = self.config.measure
        if measure.half_width is None or not measure.replicates <= len(samples) < measure.max_replicates:
            return False
        interval = ratio_interval(samples)
        return interval.half_width is None or interval.half_width > measure.half_width * interval.value

    def _refined(self, timed: Sequence[Workload], ratios: Mapping[str, float]) -> tuple[list[Workload], list[Workload]]:
        """Workloads between two neighbouring lengths of the plan where the ratio passes one: measured, and missing."""
        measured: list[Workload] = []
        missing: dict[str, Workload] = {}
        groups: dict[str, list[Workload]] = {}
        for workload in timed if self.config.measure.refine else ():
            if workload.length_q == workload.length_kv:
                groups.setdefault(_shapeless(workload), []).append(workload)
        for group in groups.values():
            for baseline in self.baselines:
                if baseline.name == group[0].setting.name:
                    continue
                cells = {w.length_q: w for w in group}
                for _ in range(self.config.measure.refine):
                    middle = _middle_of_crossing({n: self._samples(w, baseline, ratios) for n, w in cells.items()})
                    if middle is None or middle in cells:
                        break
                    workload = dataclasses.replace(group[0], length_q=middle, length_kv=middle)
                    if not self._samples(workload, baseline, ratios):
                        missing[f"{_shapeless(workload)} {middle}"] = workload
                        break
                    cells[middle] = workload
                    measured.append(workload)
        return measured, list(missing.values())

    @property
    def preload(self) -> list[str]:
        """What every child needs. The zoo's own modules run no operator on import; a plug-in's might."""
        modules = {setting.module for setting in (*self.settings.values(), *self.baselines)}
        return ["cab.measure.children", *sorted(name for name in modules if name.startswith("attention_zoo."))]

    def _blank(self, workload: Workload) -> tuple[Status, str] | None:
        setting, pattern = workload.setting, Pattern(workload.pattern)
        try:
            setting.card.require(pattern)
        except Unsupported as error:
            return Status.UNSUPPORTED, error.reason
        if workload.refusal is not None:
            return Status.UNSUPPORTED, workload.refusal
        if (setting.name, pattern) not in self._gated:
            self._gated[setting.name, pattern] = self.gate(setting, pattern) if self.gate is not None else None
        reason = self._gated[setting.name, pattern]
        return None if reason is None else (Status.FAILED_CERTIFICATE, reason)

    def _all_workloads(self) -> Iterator[Workload]:
        for setting in self.settings.values():
            yield from self._workloads(setting)

    def _workloads(self, setting: Setting) -> Iterator[Workload]:
        measure, lengths = self.config.measure, self.config.lengths
        for pattern, level, phase, length in itertools.product(self.patterns, measure.levels, measure.phases, lengths):
            keys = self.config.lengths_key if pattern.is_cross and self.config.lengths_key else [length]
            for length_kv in keys:
                yield Workload(
                    setting=setting,
                    pattern=pattern.value,
                    level=level,
                    phase=phase,
                    length_q=length,
                    length_kv=length_kv,
                    batch=measure.batch,
                    heads=measure.heads,
                    head_dim=measure.head_dim,
                    dtype=self.config.dtype,
                    device=self.device,
                    compile=measure.compile,
                )

    def run_key(self, job: Job) -> str:
        """Hash of all that the child's result depends on."""
        measure = self.config.measure
        modules = ["cab.measure.children", job.workload.setting.module]
        content: dict[str, Any] = {
            "verb": "efficiency",
            "kind": job.kind,
            "workload": dataclasses.asdict(job.workload),
            "replicate": job.replicate,
            "torch": torch.__version__,
            "hardware": self.hardware,
            "threads": self.threads,
            "limits": [measure.time_limit, measure.memory_limit],
            "blank": job.blank,
        }
        if job.baseline is not None:
            modules.append(job.baseline.module)
            content["baseline"] = dataclasses.asdict(job.baseline)
            content["timing"] = [measure.min_time_s, measure.warmup_time_s, measure.min_pairs, measure.warmup_pairs]
            content["with_time"] = job.baseline is self.baselines[0]
        content["source"] = self._source_hash(tuple(sorted(set(modules))))
        text = json.dumps(content, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def _source_hash(self, modules: tuple[str, ...]) -> str:
        if modules not in self._hashes:
            self._hashes[modules] = source_hash(modules)
        return self._hashes[modules]

    def columns(self, job: Job) -> dict[str, Any]:
        """The columns that all records of a job share."""
        w = job.workload
        return {
            "protocol": self.config.protocol.name,
            "attention": w.setting.card.name,
            "setting": w.setting.name,
            "pattern": w.pattern,
            "replicate": None if job.kind == "blank" else job.replicate,
            "length_q": w.length_q,
            "length_kv": w.length_kv,
            "batch": w.batch,
            "heads": w.heads,
            "head_dim": w.head_dim,
            "dtype": w.dtype,
            "device": self.device,
            "hardware": self.hardware,
            "threads": self.threads,
            "phase": w.phase,
            "level": w.level,
            "impl": w.setting.impl,
            "compiled": w.compile,
        }


@dataclass(frozen=True)
class _Value:
    """One value of a cell, or the reason why there is none."""

    metric: str
    status: Status
    value: float | None = None
    reason: str | None = None
    baseline: str | None = None


@dataclass(frozen=True)
class _Ending:
    """How a job ended: its values, raw times where there are, and the status that counts for the summary."""

    status: Status
    values: list[_Value]
    duration_s: float
    times: PairedTimes | None = None


class _Child:
    """Runs jobs, and turns outcomes into values: a failed pair blanks its ratio and nothing else."""

    def __init__(self, runner: IsolatedRunner, config: Efficiency, memory_limit: int | None) -> None:
        self._runner = runner
        self._measure = config.measure
        self._first_baseline = config.baselines[0] if config.baselines else None
        self._memory_limit = memory_limit

    def run(self, job: Job) -> _Ending:
        if job.kind == "blank":
            assert job.blank is not None
            status, reason = job.blank
            return _Ending(status, [_Value("time_s", status, reason=reason)], 0.0)
        return self._time(job) if job.kind == "time" else self._memory(job)

    def _isolated(self, function: Callable[..., Any], *args: Any) -> Outcome:
        return self._runner.run(function, *args, time_limit=self._measure.time_limit, memory_limit=self._memory_limit)

    def _paired(self, workload: Workload, baseline: Workload) -> Outcome:
        m = self._measure
        timing = (m.min_time_s, m.warmup_time_s, m.min_pairs, m.warmup_pairs)
        return self._isolated(time_pair, workload, baseline, *timing)

    def _time(self, job: Job) -> _Ending:
        assert job.baseline is not None
        name = job.baseline.name
        pair = self._paired(job.workload, dataclasses.replace(job.workload, setting=job.baseline))
        times: PairedTimes | None = pair.value
        if times is not None:
            ratio = _Value("ratio", Status.OK, times.ratio, baseline=name)
            own = _Value("time_s", Status.OK, times.time_s)
        else:
            ratio = _Value("ratio", pair.status, reason=f"paired with {name}: {pair.reason}", baseline=name)
            own = _Value("time_s", pair.status, reason=pair.reason)
        if name != self._first_baseline:
            return _Ending(pair.status, [ratio], pair.duration_s, times)
        if times is None and job.workload.setting.name != name:
            # Which of the two failed is not known where the process was killed: ask the mechanism alone.
            alone = self._paired(job.workload, job.workload)
            if alone.status is Status.OK:
                times = alone.value
                assert times is not None
                own = _Value("time_s", Status.OK, times.time_s)
            else:
                own = _Value("time_s", alone.status, reason=alone.reason)
        values = [own, ratio]
        if times is not None:
            values.append(_Value("first_call_s", Status.OK, times.mechanism_first_s))
        return _Ending(pair.status, values, pair.duration_s, times)

    def _memory(self, job: Job) -> _Ending:
        traced = self._isolated(memory_and_work, job.workload)
        if traced.status is Status.OK:
            return _Ending(traced.status, _values(traced.value), traced.duration_s)
        failed = [_Value("peak_extra_bytes", traced.status, reason=traced.reason)]
        counted = self._isolated(count_work, job.workload)
        if counted.status is Status.OK:
            failed += _values(counted.value)
        return _Ending(traced.status, failed, traced.duration_s)


def _values(measured: Mapping[str, float]) -> list[_Value]:
    return [_Value(metric, Status.OK, float(value)) for metric, value in measured.items()]


def _record(value: _Value, columns: Mapping[str, Any], duration_s: float) -> Record:
    return Record(
        **columns,
        metric=value.metric,
        status=value.status,
        value=value.value,
        reason=value.reason,
        baseline=value.baseline,
        unit=UNITS[value.metric],
        higher_is_better=None if value.metric == "parameters" else False,
        duration_s=round(duration_s, 3),
    )


def _raw(times: PairedTimes) -> dict[str, np.ndarray]:
    return {
        "mechanism_s": times.mechanism_s,
        "baseline_s": times.baseline_s,
        "first_s": np.array([times.mechanism_first_s, times.baseline_first_s]),
        "warmup_pairs": np.array(times.warmup_pairs),
        "stable": np.array(times.stable),
        "load_1min": np.array(os.getloadavg()[0] if hasattr(os, "getloadavg") else np.nan),
    }


def _shapeless(workload: Workload) -> str:
    """What tells one curve of costs against length from another."""
    return f"{workload.setting.name} {workload.pattern} {workload.level} {workload.phase}"


def _require_named(config: Efficiency) -> None:
    """Raises ``ValueError`` for a list that would leave nothing to measure, or nothing to compare with."""
    for name, values, example in (
        ("lengths", config.lengths, "512"),
        ("patterns", config.patterns, "causal_self"),
        ("baselines", config.baselines, "sdpa"),
        ("measure.levels", config.measure.levels, "layer"),
        ("measure.phases", config.measure.phases, "inference"),
    ):
        if not values:
            raise ValueError(f"{name} is empty: name at least one, such as {name}=[{example}]")


def _require_in_range(config: Efficiency) -> None:
    """Raises ``ValueError`` for a number with which nothing could be measured."""
    measure = config.measure
    for length in (*config.lengths, *(config.lengths_key or ())):
        if length < 1:
            raise ValueError(f"length {length} is not a positive number")
    for name in ("batch", "heads", "head_dim", "replicates", "max_replicates", "min_pairs", "warmup_pairs"):
        if getattr(measure, name) < 1:
            raise ValueError(f"measure.{name}={getattr(measure, name)} is not allowed: a whole number of at least 1")
    for name in ("refine", "min_time_s", "warmup_time_s"):
        if getattr(measure, name) < 0:
            raise ValueError(f"measure.{name}={getattr(measure, name)} is not allowed: at least 0")
    for name in ("time_limit", "half_width"):
        value = getattr(measure, name)
        if value is not None and not value > 0:
            raise ValueError(f"measure.{name}={value:g} is not allowed: above 0")


def _middle_of_crossing(samples: Mapping[int, Sequence[float]]) -> int | None:
    """The geometric mean of the last two neighbouring lengths between which the mean log ratio changes sign."""
    points = sorted((length, float(np.log(values).mean())) for length, values in samples.items() if values)
    crossed = [(a, b) for (a, x), (b, y) in itertools.pairwise(points) if (x < 0) != (y < 0)]
    return round((crossed[-1][0] * crossed[-1][1]) ** 0.5) if crossed else None


def _known(what: str, known: Mapping[str, T], name: str) -> T:
    if name not in known:
        raise UnknownName(what, name, known)
    return known[name]
