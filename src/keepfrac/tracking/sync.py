"""The W&B server: whether it takes runs now, and the upload of what was written while it did not.

    python -m src.sync [FOLDER ...]        folders of runs, of sweeps, or multirun itself (the default)

Nothing heavy is imported: a sweep asks once, before its first job starts, and hands an `offline` on to its jobs.
"""

import base64
import configparser
import contextlib
import json
import netrc
import os
import shlex
import ssl
import subprocess
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from keepfrac.errors import Held, UserError
from keepfrac.storage.commands import Parser, complain
from keepfrac.storage.files import locked
from keepfrac.storage.redact import redact
from keepfrac.storage.results import multirun

DECISION = "KEEPFRAC_WANDB"
PATIENCE_SECONDS = 3.0
BATCH = 20
TRUE = ("true", "1", "yes", "y", "on", "t")
FALSE = ("false", "0", "no", "n", "off", "f")
MODES = {
    "online": ("online", "run", "shared", "on", "enabled"),
    "offline": ("offline", "dryrun"),
    "disabled": ("disabled", "off", "false", "0", "no", "none"),
}
"""What WANDB_MODE may say, in the client's words and in those that people type."""
QUESTION = json.dumps({"query": "query Viewer { viewer { username } }"}).encode()


def decide() -> tuple[str, str]:
    """Returns online, offline or disabled, and why it is not online.

    WANDB_MODE, WANDB_DISABLED, what `wandb offline` and `wandb disabled` leave, and KEEPFRAC_WANDB=offline state it;
    without a key it is offline; otherwise the server is asked once, for at most 3 seconds: the client itself waits
    much longer, in every job.

    Raises:
        UserError: a variable says neither on nor off.
    """
    if _stated("WANDB_DISABLED", os.environ.get("WANDB_DISABLED", ""), {True: TRUE, False: FALSE}):
        return "disabled", "switched off"
    stated = os.environ.get("WANDB_MODE") or _in_settings("mode")
    mode = _stated("WANDB_MODE", stated, MODES)
    if mode == "disabled":
        return "disabled", "switched off"
    if mode == "offline":
        return "offline", f"WANDB_MODE={stated}"
    if os.environ.get(DECISION) == "offline":
        return "offline", f"{DECISION}=offline"
    problem = trouble()
    return ("offline", problem) if problem else ("online", "")


def _stated(name: str, value: str, meanings: Mapping[Any, Sequence[str]]) -> Any:
    """Returns what a value means; None: it is empty.

    Raises:
        UserError: it is none of the values that mean something.
    """
    word = value.strip().lower()
    for meaning, words in meanings.items():
        if word in words:
            return meaning
    if word:
        raise UserError(f"{name}={value}: must be one of {', '.join(w for words in meanings.values() for w in words)}")
    return None


def trouble() -> str | None:
    """Returns why nothing can be sent now: no key, no answer, a refusal; None where it can."""
    return why_not() if has_wandb_key() else "no key is configured: `wandb login` stores one"


def resolve_wandb(folder: Path) -> str | None:
    """Decides for a whole sweep; returns what to tell the user where it is not online.

    Args:
        folder: of the sweep, named in the command that uploads it later.
    """
    mode, reason = decide()
    if mode != "offline":
        return None
    os.environ[DECISION] = "offline"
    return f"W&B: offline ({reason}); to upload later: {command(folder)}"


def command(folder: Path) -> str:
    """Returns the command that uploads the runs below a folder."""
    with contextlib.suppress(ValueError):
        folder = folder.relative_to(Path.cwd())
    return f"make sync SWEEP={shlex.quote(str(folder))}"


def base_url() -> str:
    """Returns the server's address as the client reads it: the environment, its settings files, its default."""
    if address := _stated_address():
        return address
    import wandb

    return wandb.Settings().base_url.rstrip("/")


def _stated_address() -> str:
    if address := os.environ.get("WANDB_BASE_URL"):
        return address.rstrip("/")
    return _in_settings("base_url").rstrip("/")


def _in_settings(key: str) -> str:
    """Returns what the client's settings files, of the user and of this folder, say of a key; empty: nothing."""
    settings = configparser.ConfigParser(interpolation=None)
    folder = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        settings.read([folder / "settings", Path("wandb") / "settings"])
    return settings.get("default", key, fallback="")


def has_wandb_key() -> bool:
    """Whether a key is configured, by the environment or in ~/.netrc; asks nobody."""
    return bool(os.environ.get("WANDB_IDENTITY_TOKEN_FILE") or _key())


def _key() -> str | None:
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    stated = urlsplit(_stated_address()).netloc
    hosts = [stated] if stated else ["api.wandb.ai", "api.forge.coreweave.com"]
    places = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    for place in places:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            file = netrc.netrc(Path(place).expanduser())
            for host in hosts:
                if found := file.authenticators(host):
                    return found[2]
    return None


def why_not() -> str | None:
    """Asks the server who the key belongs to; returns what is wrong, None where runs can be sent."""
    address = base_url()
    host = urlsplit(address).netloc.rpartition("@")[2]
    # in a thread: a name server that hangs is not bounded by the request's own time limit
    said: list[str | None] = [f"{host} does not answer within {PATIENCE_SECONDS:.0f} s"]
    asking = threading.Thread(target=lambda: said.__setitem__(0, _ask(address, host)), daemon=True)
    asking.start()
    asking.join(PATIENCE_SECONDS)
    return said[0]


def _ask(address: str, host: str) -> str | None:
    headers = {"Content-Type": "application/json", "User-Agent": "keepfrac"}
    if key := _key():
        headers["Authorization"] = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
    local = (urlsplit(address).hostname or "") in ("localhost", "127.0.0.1", "::1")
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if local else []))
    try:
        request = urllib.request.Request(f"{address}/graphql", data=QUESTION, headers=headers)
        with opener.open(request, timeout=PATIENCE_SECONDS) as response:
            viewer = (json.load(response).get("data") or {}).get("viewer")
        return f"{host} does not know the key" if key and viewer is None else None
    except urllib.error.HTTPError as error:
        return _refusal(host, error.code)
    except (OSError, ValueError, AttributeError) as error:
        reason = getattr(error, "reason", error)
        # the client has certificates of its own, so it must try
        return None if isinstance(reason, ssl.SSLError) else f"{host} does not answer: {redact(str(reason))}"


def _refusal(host: str, code: int) -> str | None:
    if code in (401, 403):
        return f"{host} refuses the key (HTTP {code})"
    return None if code == 429 else f"{host} answers HTTP {code}"


def attempts(cell: Path) -> list[Path]:
    """Returns the folders in which W&B keeps a run's attempts, the newest last; each holds the whole history."""
    found = (path for path in (cell / "wandb").glob("*run-*") if path.is_dir() and not path.is_symlink())
    # within one second it is offline that follows online
    return sorted(found, key=lambda path: (path.name.partition("run-")[2], path.name.startswith("offline")))


def mark_sent(attempt: Path) -> None:
    """Marks an attempt as uploaded, as `wandb sync` does."""
    for file in attempt.glob("*.wandb"):
        file.with_suffix(".wandb.synced").touch()


def unsent(folder: Path) -> Iterator[Path]:
    """Yields the newest attempt of each run in or below a folder that is not uploaded; older ones are superseded."""
    for pattern in ("wandb", "*/wandb", "*/*/wandb"):
        for place in sorted(folder.glob(pattern)):
            for attempt in attempts(place.parent)[-1:]:
                if any(attempt.glob("*.wandb")) and not _is_sent(attempt):
                    yield attempt


def _is_sent(attempt: Path) -> bool:
    return any(attempt.glob("*.wandb.synced"))


def upload(runs: Sequence[Path]) -> str:
    """Uploads attempts by `wandb sync`, all at once; returns what it said."""
    aside = ("WANDB_MODE", "WANDB_DISABLED", "WANDB_SILENT", DECISION)
    environment = {name: value for name, value in os.environ.items() if name not in aside}
    words = [sys.executable, "-m", "wandb", "sync", "--include-online", *(str(run.resolve()) for run in runs)]
    options: dict = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with tempfile.TemporaryDirectory() as folder:  # it leaves logs where it is called
        process = subprocess.Popen(words, env=environment, cwd=folder, text=True, **options)
        try:
            said, _ = process.communicate(timeout=60 + 10 * len(runs))  # for ever, where the server dies
        except subprocess.TimeoutExpired:
            process.terminate()
            said, _ = process.communicate()
    return redact(said)


def sync(folders: Sequence[Path]) -> int:
    """Uploads what is not uploaded below the folders; returns the exit code."""
    say = sys.stdout.write
    waiting = [run for folder in folders for run in unsent(folder)]
    if not waiting:
        say("everything is uploaded\n")
        return 0
    if problem := trouble():
        say(f"{len(waiting)} runs wait, and {problem}\n")
        return 1
    with contextlib.ExitStack() as held:
        free = [run for run in waiting if _hold(run.parents[1], held)]
        for first in range(0, len(free), BATCH):
            batch = free[first : first + BATCH]
            said = upload(batch)
            say("".join(f"uploaded {run.parents[1]}\n" for run in batch if _is_sent(run)))
            if errors := [line for line in said.splitlines() if "ERROR" in line]:
                say("\n".join(errors) + "\n")
    left = [run for run in waiting if not _is_sent(run)]
    say("".join(f"not uploaded: {run.parents[1]} ({_why_left(run, free)})\n" for run in left))
    return 1 if left else 0


def _why_left(run: Path, free: Sequence[Path]) -> str:
    if run not in free:
        return "it is running"
    # the client writes a file when a block of it is full, or at the run's end
    written = any(file.stat().st_size for file in run.glob("*.wandb"))
    return "wandb sync failed" if written else "it was killed: its command goes on and writes it whole"


def _hold(cell: Path, held: contextlib.ExitStack) -> bool:
    """Takes the lock of a run, so that nothing is uploaded that is being written."""
    try:
        held.enter_context(locked(cell))
    except (Held, OSError):
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = Parser(prog="python -m src.sync", description="Upload offline runs to W&B.")
    parser.add_argument("folders", nargs="*", type=Path, help="of runs or sweeps; all of multirun by default")
    given = parser.parse_args(arguments).folders
    try:
        folders = given or [multirun()]
    except UserError as error:
        return complain(error)
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        return complain(f"no such folder: {', '.join(missing)}")
    return sync(folders)
