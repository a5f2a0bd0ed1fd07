"""`python -m src.main`: one run, or with -m a sweep. Heavy imports wait until the configuration stands."""

import difflib
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "src" / "keepfrac" / "plugins"))  # Hydra finds launchers only in a `hydra_plugins` package
BY_USER = os.environ.get("HYDRA_FULL_ERROR") == "1" and "KEEPFRAC_JOB" not in os.environ
os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, to be said in one line

import hydra  # noqa: E402
from hydra.errors import HydraException  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from keepfrac.errors import Held, UserError  # noqa: E402
from keepfrac.run import identity  # noqa: E402
from keepfrac.storage.redact import redact  # noqa: E402


@hydra.main(config_path=str(ROOT / "conf"), config_name="config", version_base="1.3")
def entry(cfg) -> None:
    """Runs one composed configuration."""
    from keepfrac.run.run import run

    run(cfg)


def one_line(error: BaseException) -> str:
    """Returns what went wrong and what is allowed, in one line."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    text = str(cause or error)
    if match := re.search(
        r"Could not find '([\w/]+)/([^']*)'\s+Available options in '[^']*':\s+(.*?)\s*Config search", text, re.S
    ):
        group, option, options = match.groups()
        return f"{group}={option}: no such option; there is {', '.join(options.split())}"
    if match := re.search(r"Could not override '([\w./@]+)'", text):
        return unknown_key(match[1])
    return " ".join(text.split())


def unknown_key(key: str) -> str:
    """Returns the message for a key that does not exist, with the nearest ones."""
    lines = (ROOT / "conf/config.yaml").read_text().splitlines()
    known = [
        match[1] for line in lines if (match := re.match(r"(\w+):", line)) and match[1] not in ("defaults", "hydra")
    ]
    known += [path.name for path in (ROOT / "conf").iterdir() if path.is_dir()]
    near = difflib.get_close_matches(key, known, n=3)
    return f"{key}: no such key" + (f"; did you mean {', '.join(near)}?" if near else "; --help lists the keys")


def main() -> int:
    """Runs the command line; returns the exit code."""
    sys.argv[1:] = ["logger=none" if argument == "logger=null" else argument for argument in sys.argv[1:]]
    identity.register()
    try:
        entry()
    except Held as error:
        sys.stderr.write(f"{error}\n")
        return Held.EXIT_CODE
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if BY_USER:
            raise
        sys.stderr.write(f"error: {one_line(error)}\n")
        return 1
    except Exception as error:
        if BY_USER:
            raise
        text = redact(" ".join(f"{type(error).__name__}: {error}".split()))
        sys.stderr.write(f"error: {text} (HYDRA_FULL_ERROR=1 shows where)\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; the same command goes on from the last checkpoint\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
