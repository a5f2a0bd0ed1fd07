"""Whether the model hub answers: decided once per sweep, handed to child processes by the environment.

Call `resolve_hub()` before `transformers` or `datasets` are imported: both read HF_HUB_OFFLINE while they are imported,
and without it each of their calls tries for most of a minute where nothing answers.
"""

import os
import threading
import urllib.error
import urllib.request
from pathlib import Path

from keepfrac.errors import UserError
from keepfrac.storage.cache import user_cache

DECISION = "KEEPFRAC_HUB"
OFFLINE_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
PATIENCE_SECONDS = 3.0


def hub_answers() -> bool:
    """Returns whether the hub can be reached; the first to ask decides for the whole sweep.

    KEEPFRAC_HUB=online or =offline states it; HF_HUB_OFFLINE=1 and its aliases mean no; otherwise one request, of
    which at most 3 seconds are waited for.
    """
    if any(os.environ.get(switch, "").upper() in {"1", "ON", "YES", "TRUE"} for switch in OFFLINE_SWITCHES):
        os.environ[DECISION] = "offline"
    elif not os.environ.get(DECISION):
        os.environ[DECISION] = "online" if _probe(PATIENCE_SECONDS) else "offline"
    decision = os.environ[DECISION]
    if decision not in {"online", "offline"}:
        raise UserError(f"{DECISION}={decision}: allowed are online and offline (unset: it is found out)")
    return decision == "online"


def resolve_hub() -> bool:
    """Returns whether the hub can be reached; if not, sets this process and its children to offline mode."""
    answers = hub_answers()
    if not answers:
        for switch in OFFLINE_SWITCHES:
            os.environ[switch] = "1"
    return answers


def in_cache(repo_id: str, repo_type: str = "model") -> bool:
    """Returns whether the local Hugging Face cache holds `repo_id`; it counts as the hub.

    Args:
        repo_id: owner/name.
        repo_type: "model" (config and weights are there) or "dataset" (prepared tables are there).
    """
    if repo_type == "dataset":
        return any(_datasets_cache().glob(f"{repo_id.replace('/', '___')}/**/*.arrow"))
    snapshots = _hub_cache() / f"models--{repo_id.replace('/', '--')}" / "snapshots"
    weights = ("*.safetensors", "pytorch_model*.bin")
    return any(
        (snapshot / "config.json").is_file() and any(any(snapshot.glob(pattern)) for pattern in weights)
        for snapshot in snapshots.glob("*")
    )


def _home() -> Path:
    return Path(os.environ.get("HF_HOME") or user_cache() / "huggingface").expanduser()


def _hub_cache() -> Path:
    return Path(os.environ.get("HF_HUB_CACHE") or _home() / "hub").expanduser()


def _datasets_cache() -> Path:
    return Path(os.environ.get("HF_DATASETS_CACHE") or _home() / "datasets").expanduser()


def _probe(seconds: float) -> bool:
    """Asks once, in a thread: a name server that hangs is not bounded by the request's own time limit."""
    answered = threading.Event()

    def ask() -> None:
        endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        try:
            request = urllib.request.Request(endpoint, method="HEAD")
            with urllib.request.urlopen(request, timeout=seconds):
                answered.set()
        except urllib.error.HTTPError as error:
            if error.code in {404, 405}:  # a mirror without a front page; a proxy that refuses says 403 or 407
                answered.set()
        except Exception:  # noqa: BLE001 - whatever it is, the hub did not answer
            pass
        finally:
            done.set()

    done = threading.Event()
    threading.Thread(target=ask, daemon=True).start()
    done.wait(seconds)
    return answered.is_set()
