"""Where a figure comes from: code, versions, device and the command that makes it again. No secrets, no host name."""

import contextlib
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from keepfrac.storage.redact import redact, redact_all

PACKAGES = ("torch", "pytorch-lightning", "transformers", "datasets", "hydra-core", "torchmetrics", "wandb")
ROOT = Path(__file__).resolve().parents[3]


def provenance(seed: int, overrides: list[str]) -> dict:
    """Returns what is known of a run when it starts; `overrides` are the key=value words that made it."""
    return {
        **_git(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "argv": redact_all(sys.argv[1:]),
        "command": redact(shlex.join(["python", "-m", "src.main", *overrides])),
        "seed": seed,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": None,
    }


def _git() -> dict:
    def ask(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    with contextlib.suppress(OSError):
        return {"git_sha": ask("rev-parse", "HEAD") or None, "git_dirty": bool(ask("status", "--porcelain", "-uno"))}
    return {"git_sha": None, "git_dirty": None}


def device_name(accelerator: str) -> str:
    """Returns the name of the GPU, or of the CPU with its number of cores."""
    if accelerator == "gpu":
        import torch

        return torch.cuda.get_device_name()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"
