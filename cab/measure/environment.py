"""The machine and the software that a number was made with: its short name, and its description for the manifest."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from tasks.whole_file import write_whole

# What changes speed without being in any config.
ENVIRONMENT_FLAGS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "KMP_AFFINITY",
    "GOMP_CPU_AFFINITY",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
    "LD_PRELOAD",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_ALLOC_CONF",
    "NVIDIA_TF32_OVERRIDE",
)


def hardware_id(device: str, devices: int = 1) -> str:
    """A slug that names the machine: ``intel-xeon-platinum-8481c-2-cores``; on CUDA the GPU's name.

    The same in every process of a machine, and for every machine of one kind. Cores are those this process may use.
    Several devices that work together are other hardware than one: ``4x-nvidia-h100``.
    """
    if devices > 1:
        return f"{devices}x-{hardware_id(device)}"
    if device.startswith("cuda"):
        import torch

        return _slug(torch.cuda.get_device_name(torch.device(device)))
    return f"{_slug(cpu_model())}-{usable_cores()}-cores"


def _slug(name: str) -> str:
    """Lower case, hyphens, without trade-mark signs, clock rates and words that every CPU has."""
    name = re.sub(
        r"\((r|tm|c)\)|®|™|@.*$|\b\d+-core\b|\b(cpu|processor|with radeon.*)\b", " ", name, flags=re.IGNORECASE
    )
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


@cache
def cpu_model() -> str:
    """The CPU's name as its maker gives it; the architecture where the system tells no name."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", text, flags=re.MULTILINE)
    if match:
        return match.group(1).strip()
    if sys.platform == "darwin":
        name = _output("sysctl", "-n", "machdep.cpu.brand_string")
        if name:
            return name
    return platform.processor() or platform.machine() or "unknown"


def usable_cores() -> int:
    """Logical cores this process may use: its affinity, bounded by the control group's quota (containers)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return affinity
    return affinity if quota == "max" else max(1, min(affinity, math.ceil(int(quota) / int(period))))


def describe(device: str) -> dict[str, Any]:
    """The environment as plain JSON values: hardware, versions, threads, load, flags, git commit."""
    import numpy
    import psutil
    import torch

    described: dict[str, Any] = {
        "hardware": hardware_id(device),
        "host": socket.gethostname(),
        "device": device,
        "cpu": cpu_model(),
        "cores_usable": usable_cores(),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(logical=True),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "cpu_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "cpu_mhz": _clock_mhz(),
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "environment": {name: os.environ[name] for name in ENVIRONMENT_FLAGS if name in os.environ},
        "git": git_state(),
    }
    if device.startswith("cuda"):
        described["gpu"] = _gpu(device)
    return described


def _clock_mhz() -> float | None:
    import psutil

    try:
        frequency = psutil.cpu_freq()
    except (OSError, NotImplementedError):  # virtual machines without the interface
        return None
    return None if frequency is None else float(frequency.current)


def _gpu(device: str) -> dict[str, Any]:
    """Name, capability, memory, driver; clocks, temperature and throttle reasons as the driver's tool tells them."""
    import torch

    index = torch.device(device).index or 0
    properties = torch.cuda.get_device_properties(index)
    described: dict[str, Any] = {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }
    described.update(gpu_clocks(device))
    return described


def gpu_clocks(device: str) -> dict[str, str]:
    """Driver, clocks, temperature, power and throttle reasons right now; empty where the driver's tool is missing."""
    import torch

    queries = (
        "driver_version",
        "clocks.sm",
        "clocks.mem",
        "temperature.gpu",
        "power.draw",
        "clocks_throttle_reasons.active",
    )
    identity = f"GPU-{torch.cuda.get_device_properties(torch.device(device)).uuid}"
    line = _output("nvidia-smi", f"--id={identity}", f"--query-gpu={','.join(queries)}", "--format=csv,noheader")
    values = [value.strip() for value in line.split(",")] if line else []
    return dict(zip(queries, values, strict=True)) if len(values) == len(queries) else {}


@cache
def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from and whether it differs from it; None from a wheel.

    As it was when first asked: what is edited later is not what this process has imported.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    if not commit:
        return None
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": changed is None or bool(changed)}


def write_manifest(folder: Path, device: str, config: Mapping[str, Any]) -> str:
    """Writes ``manifests/<id>.json`` under ``folder``: environment, command and resolved config. Returns the id."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    # The last part because clocks stand still or go back.
    identity = f"{stamp}-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    path = folder / "manifests" / f"{identity}.json"
    content = {"id": identity, "command": _command(sys.argv), **describe(device), "config": dict(config)}
    write_whole(path, (json.dumps(content, indent=1, sort_keys=True, default=str) + "\n").encode())
    return identity


def _command(argv: Sequence[str]) -> list[str]:
    """The command without the folder of its program, which is this machine's own business."""
    program = Path(argv[0])
    return [program.parent.name if program.stem == "__main__" else program.name, *argv[1:]]


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _output(program: str, *arguments: str) -> str | None:
    """What a program prints, or None where it is missing or fails."""
    executable = shutil.which(program)
    if executable is None:
        return None
    try:
        done = subprocess.run([executable, *arguments], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
