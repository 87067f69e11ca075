"""``cab doctor``: what this machine can do, what is missing, and the command that gets it."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from cab.compose import Composer
from cab.device import resolve_device
from cab.errors import UserError
from cab.measure.environment import describe, hardware_id
from cab.protocol import require_writable
from cab.schema import Doctor
from cab.task_settings import task_class
from tasks.sources import cache_folder

EXTRAS = (
    ("tensorboard", "tracker=tensorboard", "pip install 'cab-attention[tensorboard]'"),
    ("hydra_plugins.hydra_joblib_launcher", "hydra/launcher=joblib", "pip install 'cab-attention[joblib]'"),
    (
        "hydra_plugins.hydra_submitit_launcher",
        "hydra/launcher=submitit_local, submitit_slurm",
        "pip install 'cab-attention[submitit]'",
    ),
    ("optuna", "cab tune", "pip install 'cab-attention[tune]'"),
    ("ray", "hydra/launcher=ray", "pip install 'cab-attention[ray]'"),
)
REQUIRED = ("torch", "hydra-core", "omegaconf", "numpy", "pandas", "matplotlib", "wandb")


@dataclass(frozen=True)
class Finding:
    """One line of the examination; ``remedy`` is the command that mends it, ``fatal`` whether nothing works without."""

    good: bool
    what: str
    remedy: str = ""
    fatal: bool = False

    def __str__(self) -> str:
        return f"  {'ok  ' if self.good else 'MISS'}  {self.what}" + (f"\n        {self.remedy}" if self.remedy else "")


def examine(composer: Composer, config: Doctor) -> bool:
    """Prints the findings; True where nothing fatal was found."""
    findings = [*_machine(config), *_packages(), *_data(composer), *_results(config)]
    for finding in findings:
        print(finding)
    return not any(finding.fatal for finding in findings)


def _machine(config: Doctor) -> Iterator[Finding]:
    device = resolve_device(config.device)
    facts = describe(device)
    yield Finding(True, f"hardware {hardware_id(device)}; device {device}; {torch.get_num_threads()} threads")
    yield Finding(True, f"Python {platform.python_version()}; " + ", ".join(_versions()))
    memory = facts.get("memory_bytes")
    if memory:
        yield Finding(memory >= 4 << 30, f"memory {memory / 2**30:.0f} GiB (4 GiB are enough for protocol=quick)")
    if torch.cuda.is_available():
        yield Finding(True, f"GPU {torch.cuda.get_device_name()}")
    else:
        yield Finding(True, "no CUDA device: everything runs on the CPU")


def _versions() -> Iterator[str]:
    for name in REQUIRED:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} not found"


def _packages() -> Iterator[Finding]:
    for module, use, remedy in EXTRAS:
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:
            found = False
        yield Finding(found, f"optional: {use}", "" if found else remedy)


def _data(composer: Composer) -> Iterator[Finding]:
    folder = cache_folder()
    free = shutil.disk_usage(next(p for p in (folder, *folder.parents) if p.exists())).free
    yield Finding(free > 1 << 30, f"data cache {folder} ({free / 2**30:.0f} GiB free; another place: CAB_CACHE=DIR)")
    for name in composer.options("task"):
        for source in task_class(name, str(composer.node("task", name)["_target_"])).sources:
            cached = source.is_cached()
            remedy = "" if cached else f"cab run task={name} trainer.max_steps=1"
            yield Finding(cached, f"data of {name}: {source.package} {source.version}", remedy)


def _results(config: Doctor) -> Iterator[Finding]:
    try:
        require_writable(Path(config.results).expanduser())
    except UserError as error:
        yield Finding(False, str(error), fatal=True)
    else:
        yield Finding(True, f"results folder {Path(config.results).expanduser()} can be written")
