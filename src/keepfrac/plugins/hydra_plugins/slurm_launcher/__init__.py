"""Launchers for Slurm, `hydra/launcher=slurm_cpu` and `slurm_gpu`: each cell of a sweep is a job of its own.

The grid is composed, checked and shown as for the local launcher, and the same command runs each cell. Not
hydra-submitit-launcher: it runs a cell inside a pickled Hydra, waits for ever where a job is killed and accounting is
off, calls a failed cell completed, and gives up the results of all others. What is heavy is imported in functions, and
no dataclass may stand here: see the local launcher.
"""

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from hydra.types import HydraContext, TaskFunction
from hydra_plugins.proc_launcher import ProcLauncher
from omegaconf import DictConfig


class SlurmLauncher(ProcLauncher):
    """Submits the cells that are not done, waits for them, and says what became of each.

    Args:
        n_jobs: jobs that run at a time, a whole number >= 1.
        partition: null: the cluster's default.
        account: null: the user's default.
        time: minutes of one attempt, >= 1.
        warning: seconds before its end at which a job is told to queue again, below 60 * time.
        requeues: how often a job whose time was up is queued again, >= 0; its run goes on from its checkpoint.
        tasks: processes of a job, >= 1: those of hardware.devices.
        cpus: cores, and threads, of each process, >= 1.
        gpus: of a job, >= 0.
        memory: gigabytes of a job; null: the cluster's default.
        setup: lines of shell before the run, such as a `module load`.
        options: further options of sbatch, such as qos.
    """

    def __init__(
        self,
        n_jobs: int,
        partition: str | None,
        account: str | None,
        time: int,
        warning: int,
        requeues: int,
        tasks: int,
        cpus: int,
        gpus: int,
        memory: float | None,
        setup: Sequence[str],
        options: dict[str, Any],
    ) -> None:
        super().__init__(n_jobs)
        self.asked: dict[str, Any] = {
            "partition": partition,
            "account": account,
            "time": time,
            "warning": warning,
            "requeues": requeues,
            "tasks": tasks,
            "cpus": cpus,
            "gpus": gpus,
            "memory": memory,
            "setup": tuple(setup),
            "options": dict(options),
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from keepfrac.errors import UserError
        from keepfrac.sweep.slurm import Request

        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.request = Request(**self.asked)
        if shutil.which("sbatch") is None:
            raise UserError(
                f"hardware={config.hardware.name} needs Slurm, and there is no sbatch here: hardware=cpu or gpu runs"
                " on this machine"
            )
        if find_spec("submitit") is None:
            raise UserError("Slurm jobs need submitit: make install-slurm")

    def _check_launcher(self, config: DictConfig) -> None:
        from keepfrac.errors import UserError

        super()._check_launcher(config)
        if config.hardware.precision == "auto":
            raise UserError(
                "hardware.precision=auto: on a cluster it must be 32-true or bf16-mixed, for the machine that plans"
                " the sweep cannot know what the others have"
            )

    def _threads(self) -> int:
        return self.request.cpus

    def _pool(self, plan: Any, known: dict, console: Any) -> Any:
        from hydra_plugins.slurm_launcher._pool import SlurmPool

        return SlurmPool(plan.todo, self._command_of, self.n_jobs, self.request, known, len(plan.done), console)
