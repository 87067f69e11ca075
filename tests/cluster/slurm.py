"""A real Slurm of one node on this machine: ``munged``, ``slurmctld`` and ``slurmd`` in a folder of their own.

Needs root and Debian's ``slurm-wlm`` and ``munge`` (``make test-cluster`` installs them).
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIG = """
ClusterName=cab
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
MpiDefault=none
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def available() -> bool:
    """Whether this machine could start one."""
    return os.geteuid() == 0 and all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch")))


@contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """The environment that finds the cluster, while it runs."""
    host, cores = socket.gethostname().partition(".")[0], os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 3 // 4
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    os.chmod(folder, 0o755)
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(host=host, folder=folder, cores=cores, memory=memory))
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    os.chmod(key, 0o600)
    daemons: list[subprocess.Popen[bytes]] = []
    environment = os.environ | {"SLURM_CONF": str(config)}

    def start(*command: str) -> None:
        with (folder / f"{Path(command[0]).name}.out").open("wb") as out:
            daemons.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out))

    try:
        files = {"socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        start(
            *("munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--{option}={folder}/munge.{ending}" for option, ending in files.items()),
        )
        _wait(lambda: (folder / "munge.socket").exists(), "munged", folder)
        start("slurmctld", "-D")
        start("slurmd", "-D", "-N", host)
        _wait(lambda: "idle" in _output(environment, "sinfo", "--noheader", "--format=%T"), "the node", folder)
        yield environment
    finally:
        # Steps outlive the daemons, and would hold their ports.
        subprocess.run(["scancel", "--quiet", "--user=root", "--signal=KILL"], env=environment, timeout=30)
        subprocess.run(["scancel", "--quiet", "--user=root"], env=environment, timeout=30)
        time.sleep(2.0)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=30)


def _output(environment: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def _wait(ready, what: str, folder: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.[lo][ou][gt]"))
            raise RuntimeError(f"{what} is not up after {seconds:.0f} s\n{logs}")
        time.sleep(0.2)
