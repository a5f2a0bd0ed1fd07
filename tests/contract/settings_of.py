"""What each method needs to do its work within a few steps: the table of all laws.

Patterns are of methods' names; the first that fits counts. A new yaml is tested by the laws without an entry.
"""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from keepfrac.storage.build import build_target

CONF = Path(__file__).resolve().parents[2] / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
GATES = ("method.prefinetune=0.25", "method.target_warmup=0.5", "method.settled_at=0.6")
GATES_AT_ONCE = ("method.prefinetune=0", "method.target_warmup=0.5", "method.settled_at=0.5")
SETTINGS = {
    "l0*": GATES,
    "backrazor": ("model.attention=eager",),
    "lora_sparse*": ("method.rank=4", "method.sparse=16", "method.score=w_delta"),  # at first all updates are zero
    "*lora*": ("method.rank=4",),
    "dsee*": ("method.rank=4", "method.sparse=16"),
    "taylor*": ("method.score_rows=16", "method.begin=0.2", "method.settled_at=0.6"),
    "magnitude": ("method.settled_at=0.6",),
}
TWO_STEPS = {  # in place of those, where a run has two steps
    "l0*": GATES_AT_ONCE,
    "sparsebert": ("method.head=own",),  # its own head cannot be cut
    "taylor*": ("method.settled_at=0.5",),
    "magnitude": ("method.settled_at=0",),
}
KEEP = {  # the least of the usual shares that a method can keep of the two-layer model, where 0.45 cannot be met
    "distill_prune": 0.2,
    "gradual_magnitude": 0.2,
    "sparsebert": 0.2,
    "layer_drop": 0.5,
    "dsee_structured": 0.5,
    "dsee_25_25": 1.0,
}


def matching(table: dict, name: str | tuple[str, ...]) -> Any:
    """The value of the first pattern that fits a name, or each of several; None where none does."""
    for pattern, value in table.items():
        if fnmatch(name, pattern) if isinstance(name, str) else all(map(fnmatch, name, pattern)):
            return value
    return None


def words(method: str, *tables: dict) -> tuple[str, ...]:
    """The overrides that choose a method and its settings; later tables go over earlier ones."""
    chosen = (matching(table, method) or () for table in (SETTINGS, *tables))
    return (f"method={method}", *(word for more in chosen for word in more))


def is_preset(method: str) -> bool:
    """Whether a method's yaml begins with another's and changes some of its settings."""
    return "_target_:" not in (CONF / "method" / f"{method}.yaml").read_text()


def made(method: str, **changed):
    """The settings of a method as its yaml has them, with some changed."""
    own = OmegaConf.load(CONF / "method" / f"{method}.yaml")
    own.pop("defaults", None)
    whole = OmegaConf.create({"keep_frac": 0.3, "seed": 0, "clip": 1.0, "method": own})
    given = OmegaConf.to_container(whole, resolve=True)["method"] | changed
    return build_target(given["_target_"]).Settings.of(given)
