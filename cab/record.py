"""One record: a tidy row for one measured value, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

SCHEMA_VERSION = 2  # 2: phases fidelity and evaluate_exact


class Status(StrEnum):
    """How a cell ended; every status but ``ok`` comes with a reason."""

    OK = "ok"
    OUT_OF_MEMORY = "out_of_memory"
    OVER_BUDGET = "over_budget"
    TIMEOUT = "timeout"
    DIVERGED = "diverged"
    UNSUPPORTED = "unsupported"
    FAILED_CERTIFICATE = "failed_certificate"
    ERROR = "error"


# A repeat of the same command could mend these, so they do not make a cell complete.
RETRIED = frozenset({Status.ERROR})


@dataclass(frozen=True, kw_only=True)
class Record:
    """One value. Columns that do not apply are None; ``value`` is None where ``status`` is not ``ok``.

    ``attention`` is the mechanism and ``setting`` its config name with non-default options; ``task_setting`` likewise.
    ``level`` is op, layer or model; ``phase`` is inference, training_forward, training, decode, or train / evaluate
    for the figures of a task run. ``baseline`` names the setting of a ``ratio``. Times are in seconds, sizes in bytes.
    ``split`` is that of a score; a run that is scored on validation data says so in all of its rows.
    ``replicate`` counts processes of a cost cell. ``manifest`` names the file in ``manifests/``.
    """

    run_key: str
    protocol: str
    metric: str
    status: Status
    attention: str | None = None
    setting: str | None = None
    pattern: str | None = None
    slots: str | None = None
    task: str | None = None
    task_setting: str | None = None
    data: str | None = None
    size: str | None = None
    split: str | None = None
    value: float | None = None
    unit: str | None = None
    higher_is_better: bool | None = None
    reason: str | None = None
    seed: int | None = None
    replicate: int | None = None
    length_q: int | None = None
    length_kv: int | None = None
    batch: int | None = None
    heads: int | None = None
    head_dim: int | None = None
    dtype: str | None = None
    device: str | None = None
    hardware: str | None = None
    threads: int | None = None
    phase: str | None = None
    level: str | None = None
    baseline: str | None = None
    impl: str | None = None
    compiled: bool | None = None
    started_at: str | None = None
    duration_s: float | None = None
    manifest: str | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if (self.status is Status.OK) == (self.value is None):
            raise ValueError(f"{self.metric}: a value with status ok, None otherwise; got {self.value}, {self.status}")
        if self.status is not Status.OK and not self.reason:
            raise ValueError(f"{self.metric}: status {self.status} needs a reason")


COLUMNS: tuple[str, ...] = tuple(field.name for field in fields(Record))
