"""Peak memory by the kernel's own count: the audit of :mod:`cab.measure.memory`, for the CPU on Linux.

In a fresh interpreter whose C library gives every larger block a mapping of its own and returns it at once
(``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_TOP_PAD_``), the high-water mark of the resident set
is reset, the call is made, and what the mark has risen is read. This sees everything, the scratch of a BLAS library
included. Such a process is slow and never timed. With the C library's defaults the mark reads up to two thirds too
much, because freed memory is kept; the resident set after the call reads up to a hundred times too little.
"""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys

from cab.measure.workload import Prepared, Workload

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0"}


def resident_peak_bytes(workload: Workload, threads: int = 1) -> int:
    """Bytes by which the resident set rises during one call of ``workload`` above what it was before.

    Raises:
        RuntimeError: where the interpreter fails, with its last line.
    """
    environment = {**os.environ, **MALLOC, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-m", "cab.measure.resident", str(threads)],
        input=pickle.dumps(workload),
        capture_output=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the audit failed: {done.stderr.decode(errors='replace').strip().rpartition(chr(10))[2]}")
    return int(done.stdout)


def _status(field: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(f"{field}:"))


def _audit(workload: Workload, threads: int) -> int:
    import torch

    torch.set_num_threads(threads)
    # Libraries set themselves up at the first calls and keep that: one of full size among them.
    workload.tiny().prepare()()
    prepared = workload.prepare()
    prepared()
    if isinstance(prepared, Prepared):  # gradients of that call would be there before the next one
        for tensor in prepared.held:
            tensor.grad = None
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status("VmRSS")
    result = prepared()
    peak = _status("VmHWM")
    del result
    return peak - before


if __name__ == "__main__":
    print(_audit(pickle.loads(sys.stdin.buffer.read()), int(sys.argv[1])))
