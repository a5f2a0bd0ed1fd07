"""The local launcher, `hydra/launcher=proc`: a process of its own per job, so that no job can end the sweep.

Hydra accepts launchers only under the namespace package `hydra_plugins`, and imports this module whenever the
program starts: what is heavy is imported in functions. No dataclass may stand here: Hydra's scan executes the
module before it is in sys.modules, which breaks them together with postponed annotations. The scan leaves out
modules whose name begins with an underscore.
"""

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class ProcLauncher(Launcher):
    """Composes and checks the whole grid, then runs what is not done, each cell in a process of its own.

    Args:
        n_jobs: processes at a time, a whole number >= 1; the cores are divided among them.
        warm: whether they begin as copies of one process that has imported what they need, which saves that time for
            all but one; on a CPU under Linux. False: each begins as a fresh one.
    """

    composes_first = True

    def __init__(self, n_jobs: int, warm: bool = False) -> None:
        self.n_jobs, self.warm = n_jobs, warm

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        from keepfrac.errors import UserError

        # here, for Hydra wraps what a constructor raises
        if isinstance(self.n_jobs, bool) or not isinstance(self.n_jobs, int) or self.n_jobs < 1:
            raise UserError(f"hydra.launcher.n_jobs={self.n_jobs}: must be a whole number >= 1")
        if not isinstance(self.warm, bool):
            raise UserError(f"hydra.launcher.warm={self.warm}: must be true or false")
        self.loader, self.config = hydra_context.config_loader, config
        self.command = [*program(task_function), *config_flags(config)]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs the grid.

        Raises:
            UserError: a cell is illegal, no cell has its data, or cells failed. It is raised rather than
                returned in a JobReturn because Hydra would print a line of its own before it.
            SystemExit: stopped by a signal.
        """
        from rich.console import Console

        from keepfrac.errors import UserError
        from keepfrac.storage import results
        from keepfrac.sweep import planning, terminal

        console = Console(soft_wrap=True, markup=False, highlight=False)
        plan = planning.make_plan(self._cells(job_overrides, initial_job_idx))
        if not plan.todo and not plan.done:
            raise UserError(planning.nothing_to_run(plan))
        folder = (*plan.todo, *plan.done)[0].folder.parent
        finished = results.finished(folder)
        known = planning.known_seconds(each for _, each in finished)
        expected = self._expected(plan, known)
        for line in planning.describe_plan(plan, folder.name, self.n_jobs, self._threads(), expected):
            console.print(line)
        if plan.todo:
            self._settle_streaming(folder, console)
            self._run(plan, known, console)
            finished = results.finished(folder)
        else:
            console.print(f"everything is done: {folder}")
        console.print(terminal.score_table(found for _, found in finished), soft_wrap=False)
        console.print(f"all figures: python -m src.report {folder}")
        return [_completed(job.overrides, results.read(job.folder)) for job in (*plan.done, *plan.todo)]

    def _expected(self, plan: Any, known: dict) -> str:
        """Says how long the rest takes: by the sweep's finished cells, else by what its experiment states."""
        from keepfrac.sweep import planning

        said = planning.duration(planning.seconds_left([job.kind for job in plan.todo], [], known, self.n_jobs))
        if known:
            return said
        experiment = self.config.hydra.runtime.choices.get("experiment")
        stated = [planning.stated_time(path) for path in _experiment_files(self.config, experiment)]
        whole = planning.combinations(self.config.hydra.sweeper.get("params") or {})
        told = [planning.narrowed(f"experiment={experiment}", time, len(plan.todo), whole) for time in stated if time]
        return "; ".join([f"{said} until the first cell ends", *told[:1]])

    def _settle_streaming(self, folder: Path, console: Any) -> None:
        """Finds out once whether the W&B server takes runs: each job alone would wait for it."""
        if self.config.get("logger", {}).get("name") == "wandb":
            from keepfrac.tracking import sync

            if told := sync.resolve_wandb(folder):
                console.print(told)

    def _run(self, plan: Any, known: dict, console: Any) -> None:
        from hydra_plugins.proc_launcher._pool import Stopped

        from keepfrac.errors import UserError
        from keepfrac.sweep.terminal import failure_table

        pool = self._pool(plan, known, console)
        try:
            failures = pool.run()
        except Stopped as stopped:
            name = signal.Signals(stopped.signal).name
            console.print(f"stopped by {name}: {pool.num_done} cells are done; the same command continues")
            sys.exit(128 + stopped.signal)
        if failures:
            if not console.is_terminal:
                console.width = 140  # a log has no width of its own, and 80 columns break every line
            console.print(failure_table(failures), soft_wrap=False)
            total = len(failures) + pool.num_done
            raise UserError(f"{len(failures)} of {total} cells failed; the same command runs them again")

    def _pool(self, plan: Any, known: dict, console: Any) -> Any:
        from hydra_plugins.proc_launcher._pool import Pool

        return Pool(
            plan.todo,
            command=self._command_of,
            num_at_once=self.n_jobs,
            threads=self._threads(),
            known=known,
            num_done=len(plan.done),
            console=console,
            warm=self.warm and self.config.hardware.get("accelerator", "cpu") == "cpu",
        )

    def _threads(self) -> int:
        from keepfrac.sweep.planning import threads_per_job

        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return threads_per_job(cores, self.n_jobs)

    def _command_of(self, job: Any) -> list[str]:
        # The child keeps its composed launcher (unused in RUN mode): to override it would break experiments
        # that set a key of this one.
        folder = str(job.folder).replace("\\", "\\\\").replace("'", "\\'")
        return [*self.command, *job.overrides, "hydra.mode=RUN", f"hydra.run.dir='{folder}'"]

    def _cells(self, job_overrides: Sequence[Sequence[str]], first: int) -> Iterator[Any]:
        """Composes and checks every combination; one without data becomes a `Missing`."""
        from hydra_plugins.proc_launcher._compose import Composer

        from keepfrac.errors import DataMissing, UserError
        from keepfrac.sweep.planning import Missing

        setup_globals()
        before, composer = HydraConfig.instance().cfg, Composer(self.loader, self.config)
        try:
            for index, overrides in enumerate(job_overrides):
                task = tuple(each for each in overrides if not each.startswith(("hydra.", "hydra/")))
                try:
                    yield self._cell(composer(overrides), task, first + index)
                except DataMissing as missing:
                    yield Missing(task, str(missing))
                except UserError as error:
                    raise UserError(f"cell {' '.join(task)}: {error}") from error
        finally:
            HydraConfig.instance().cfg = before

    def _cell(self, config: DictConfig, task: tuple[str, ...], index: int) -> Any:
        from keepfrac.run import identity
        from keepfrac.sweep.planning import Job, kind_of

        self._check_launcher(config)
        with open_dict(config):
            config.hydra.job.num, config.hydra.job.id = index, str(index)
            config.hydra.runtime.output_dir = str(Path(self.config.hydra.sweep.dir).absolute())
        HydraConfig.instance().cfg = config  # type: ignore[assignment]  # ${hydra:...} reads it; no copy
        cell = identity.cell(identity.check(config))
        return Job(task, cell.identity, cell.folder, cell.label, kind_of(config), cell.code, cell.code_asked)

    def _check_launcher(self, config: DictConfig) -> None:
        """Hydra chooses the launcher before it sees swept groups: another one's name would be ignored."""
        from keepfrac.errors import UserError

        if config.hydra.launcher != self.config.hydra.launcher:
            chosen = config.hydra.runtime.choices.get("hydra/launcher")
            raise UserError(
                f"this cell asks for hydra/launcher={chosen} or other settings of it, but a sweep has one "
                "launcher, chosen before it starts; give this hardware a command of its own"
            )


def program(task_function: Any) -> list[str]:
    """Returns how to start this program again: `python -m module`, or its file where it is not a module."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    module = task_function.__module__
    if module == "__main__" and spec is None:
        return [sys.executable, str(Path(sys.argv[0]).absolute())]
    return [sys.executable, "-m", spec.name if module == "__main__" and spec else module]


def config_flags(config: DictConfig) -> list[str]:
    """Returns the command line's --config-name and --config-dir, which are no overrides."""
    typed = any(arg.split("=")[0] in ("--config-name", "-cn") for arg in sys.argv)
    flags = ["--config-name", str(config.hydra.job.config_name)] if typed else []
    for source in config.hydra.runtime.config_sources:
        flags += ["--config-dir", source.path] if source.provider == "command-line" else []
    return flags


def _experiment_files(config: DictConfig, experiment: str | None) -> list[Path]:
    folders = [Path(source.path) for source in config.hydra.runtime.config_sources if source.schema == "file"]
    return [folder / "experiment" / f"{experiment}.yaml" for folder in folders]


def _completed(overrides: Sequence[str], value: dict | None) -> JobReturn:
    done = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    done.return_value = value
    return done
