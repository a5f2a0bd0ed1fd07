"""A private Slurm of one node in a temporary folder: own key, socket, ports and state; nothing under /etc or /run."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
START_SECONDS = 30.0


def missing() -> str | None:
    """Returns why there can be no cluster here."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None and not Path(f"/usr/sbin/{name}").exists()]
    if absent:
        return f"no {absent[0]}: apt-get install --no-install-recommends slurm-wlm munge"
    return None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie, which an init process of a container may leave for ever."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


class Cluster:
    """Its daemons: `start()`, and `stop()` once the queue is empty, else the jobs' own processes are orphaned."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.host = socket.gethostname().partition(".")[0]
        self.configuration = folder / "slurm.conf"
        self.environment = {**os.environ, "SLURM_CONF": str(self.configuration)}
        self.environment["PATH"] += ":/usr/sbin"

    def start(self) -> None:
        for name in ("state", "spool", "log", "run"):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)  # munged refuses a socket that others cannot reach
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.configuration.write_text(self._configuration())
        self._call(
            "munged",
            "--force",
            f"--socket={self._run('munge.sock')}",
            f"--key-file={key}",
            f"--pid-file={self._run('munged.pid')}",
            f"--log-file={self.folder}/log/munged.log",
            f"--seed-file={self._run('munged.seed')}",
            "--num-threads=2",
        )
        self._call("slurmctld", "-c")
        self._call("slurmd", "-c")
        self._wait_for(lambda: self("sinfo", "--noheader", "--format=%T", check=False) == "idle", "is not idle")

    def stop(self) -> None:
        self("scancel", f"--user={getpass.getuser()}", check=False)
        try:
            self._wait_for(lambda: not self("squeue", "--noheader", check=False), "has jobs left")
        finally:
            for name in ("slurmd", "slurmctld", "munged"):
                self._end(self.folder / "run" / f"{name}.pid")

    def __call__(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=30, check=False)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def _run(self, name: str) -> Path:
        return self.folder / "run" / name

    def _call(self, *command: str) -> None:
        self(*command)

    def _wait_for(self, holds, what: str) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                logs = "\n".join(path.read_text()[-2000:] for path in (self.folder / "log").glob("*.log"))
                raise TimeoutError(f"the cluster {what} after {START_SECONDS:.0f} s\n{logs}")
            time.sleep(0.1)

    @staticmethod
    def _end(pid_file: Path) -> None:
        if not pid_file.exists():
            return
        pid = int(pid_file.read_text())
        for number in (15, 9):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and alive(pid):
                time.sleep(0.05)

    def _configuration(self) -> str:
        cores = len(os.sched_getaffinity(0))
        settings = {
            "ClusterName": "private",
            "SlurmctldHost": f"{self.host}(127.0.0.1)",
            "SlurmUser": getpass.getuser(),
            "SlurmdUser": getpass.getuser(),
            "AuthType": "auth/munge",
            # the life of a credential is also how long a job that is queued again must wait: 120 s by default
            "AuthInfo": f"socket={self._run('munge.sock')},cred_expire=5",
            "CredType": "cred/munge",
            "SlurmctldPort": free_port(),
            "SlurmdPort": free_port(),
            "StateSaveLocation": self.folder / "state",
            "SlurmdSpoolDir": self.folder / "spool",
            "SlurmctldLogFile": self.folder / "log/slurmctld.log",
            "SlurmdLogFile": self.folder / "log/slurmd.log",
            "SlurmctldPidFile": self._run("slurmctld.pid"),
            "SlurmdPidFile": self._run("slurmd.pid"),
            "ProctrackType": "proctrack/linuxproc",  # cgroups are not to be had in most containers
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "MpiDefault": "none",
            "SwitchType": "switch/none",
            "ReturnToService": 2,
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core",  # with _Memory each job would take the whole node
            "SchedulerParameters": "sched_min_interval=100000,sched_interval=1,bf_interval=1",
            "KillWait": 2,
            "MinJobAge": 300,
        }
        lines = [f"{key}={value}" for key, value in settings.items()]
        node = f"NodeName={self.host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=1 State=UNKNOWN"
        return "\n".join([*lines, node, "PartitionName=only Nodes=ALL Default=YES MaxTime=INFINITE State=UP", ""])
