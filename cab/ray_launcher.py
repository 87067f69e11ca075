"""A Hydra launcher that runs cells as tasks of a Ray cluster: ``hydra/launcher=ray``.

Written here because the plug-in of the same name holds ``cloudpickle`` below 3, which joblib no longer takes, and
brings Amazon's libraries along. A worker that dies is the end of its own cell only; the others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from cab.errors import UserError, one_line


class RayLauncher(Launcher):
    """Args:
    address: of a running cluster (``auto``, ``HOST:PORT``); None starts one on this machine for the sweep.
    cpus_per_run, gpus_per_run: what Ray reserves for a cell, which decides how many run side by side.
    """

    def __init__(self, address: str | None = None, cpus_per_run: float = 1, gpus_per_run: float = 0) -> None:
        self.address = address
        self.cpus_per_run = cpus_per_run
        self.gpus_per_run = gpus_per_run

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """What each cell's worker returned, or what it died of."""
        try:
            import ray
        except ImportError as error:
            raise UserError("hydra/launcher=ray needs Ray: pip install 'cab-attention[ray]'") from error
        started = not ray.is_initialized()
        if started:
            try:
                quiet: dict[str, Any] = {
                    "log_to_driver": False,
                    "include_dashboard": False,
                    "logging_level": logging.ERROR,
                }
                ray.init(address=self.address, **quiet)
            except ConnectionError as error:
                raise UserError(f"hydra.launcher.address={self.address!r}: {one_line(error)}") from error
        try:
            run = ray.remote(num_cpus=self.cpus_per_run, num_gpus=self.gpus_per_run, max_retries=0)(_run)
            # Shared by all tasks, and large: put into Ray's store once.
            shared = ray.put((self.context, self.config, self.task_function, Singleton.get_state()))
            waiting = [
                run.remote(shared, list(overrides), number)
                for number, overrides in enumerate(job_overrides, start=initial_job_idx)
            ]
            return [_result(each, ray) for each in waiting]
        finally:
            if started:
                ray.shutdown()


def _run(
    shared: tuple[HydraContext, DictConfig, TaskFunction, dict[type, Any]], overrides: list[str], number: int
) -> JobReturn:
    context, config, task_function, state = shared
    setup_globals()
    Singleton.set_state(state)
    composed = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        composed.hydra.job.id = f"run {number}"
        composed.hydra.job.num = number
    HydraConfig.instance().set_config(composed)
    return run_job(
        task_function=task_function,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
        configure_logging=False,
    )


def _result(waiting: Any, ray: Any) -> JobReturn:
    try:
        returned = ray.get(waiting)
        assert isinstance(returned, JobReturn)
        return returned
    except ray.exceptions.RayError as error:
        return JobReturn(status=JobStatus.FAILED, _return_value=error)
