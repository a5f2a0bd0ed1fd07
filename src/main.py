"""`python -m src.main`: one run, or with -m a sweep. Heavy imports wait until the configuration stands."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "src" / "keepfrac" / "plugins"))  # Hydra finds launchers only in a `hydra_plugins` package
BY_USER = os.environ.get("HYDRA_FULL_ERROR") == "1" and "KEEPFRAC_JOB" not in os.environ
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, to be shown in one line

import hydra  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from omegaconf import OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from keepfrac.errors import Held, UserError  # noqa: E402
from keepfrac.run import command_line, identity  # noqa: E402
from keepfrac.storage.commands import complain  # noqa: E402

failed: list[Exception] = []  # what a run raised: Hydra would add a line above ours


@hydra.main(config_path=str(ROOT / "conf"), config_name="config", version_base="1.3")
def entry(cfg) -> None:
    """Runs one composed configuration."""
    from keepfrac.run.run import run

    try:
        run(cfg)
    except Exception as error:  # noqa: BLE001 - raised again by `compose_and_run`
        failed.append(error)


def compose_and_run() -> None:
    """Runs what the command line says."""
    failed.clear()
    sys.argv[1:] = command_line.arranged(sys.argv[1:])
    identity.register()
    OmegaConf.register_new_resolver("described", command_line.described, replace=True)
    entry()
    if failed:
        raise failed[0]


def main() -> int:
    """Runs the command line; returns the exit code."""
    if "--version" in sys.argv[1:]:
        sys.stdout.write(f"keepfrac {command_line.version()}\n")
        return 0
    if "install=bash" in sys.argv[1:]:
        sys.stdout.write(command_line.COMPLETION)
        return 0
    try:
        compose_and_run()
    except Held as error:
        sys.stderr.write(f"{error}\n")
        return Held.EXIT_CODE
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if BY_USER:
            raise
        return complain(command_line.one_line(error, sys.argv[1:]))
    except Exception as error:
        if BY_USER:
            raise
        return complain(command_line.foreign_error(error))
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from the last checkpoint\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
