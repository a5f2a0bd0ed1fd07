"""The golden file: what every method leaves on a tiny model, to the last bit.

`python -m tests.contract.golden` writes golden.json from the code as it is. A refactor leaves it unchanged; a commit
that must change a value says which and why. Identities and kept counts hold on any machine. Weights and scores are
bits of one kind of processor: they are compared where a small reference computation of plain torch gives the same bits.
"""

import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from keepfrac.errors import UserError
from keepfrac.run import identity
from keepfrac.run.run import run
from tests.integration.conftest import sentences
from tests.runs import killed_at

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("golden.json")
CONF = ROOT / "conf"
METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
GATES = ("method.prefinetune=0", "method.target_warmup=0.5", "method.settled_at=0.5")
MORE = {  # by the name of a method: what it needs to do its work within eight steps
    "l0": GATES,
    "l0_factorized": GATES,
    "backrazor": ("model.attention=eager",),
    "vocab": ("method.min_count=2",),
    "lora": ("method.rank=4", "method.merge=keep"),
    "peft_lora": ("method.rank=4",),
    **dict.fromkeys(("lora_sparse", "lora_sparse_random"), ("method.rank=4",)),
    **dict.fromkeys(("dsee_structured", "dsee_25_25"), ("method.rank=4", "method.sparse=16")),
}
SMALL = {
    "gpt2_tiny": ("model.config.n_embd=32", "model.config.n_positions=160"),
    "llama_tiny": ("model.config.hidden_size=32", "model.config.intermediate_size=64"),
}
EXTRA = {  # name: words; together with each method by itself
    "nosp+fgm": ("method=nosp", "regularize=fgm"),
    "nosp+ema": ("method=nosp", "regularize=ema"),
    "nosp+r_drop": ("method=nosp", "regularize=r_drop"),
    "nosp+layer_decay": ("method=nosp", "regularize=layer_decay"),
    "l0+late": ("method=l0", "backward=late", *GATES),
    "l0+controller": (
        "method=l0",
        *GATES,
        "method.controller={proportional: 3, integral: 10, quadratic: 2, limit: 10}",
    ),
    "l0+macs": ("method=l0", *GATES, "method.cost=macs", "method.drop_empty=true"),
    "lora+late": ("method=lora", "backward=late", "method.rank=4"),
    "late+recompute": ("method=late", "method.context=recompute", "method.rows=grad"),
    "magnitude+family": ("method=magnitude", "method.scope=family"),
    "distill_prune+global": ("method=distill_prune", "method.scope=global", "method.regrow=0.1"),
    "dsee_structured+global": ("method=dsee_structured", "method.rank=4", "method.scope=global"),
    "nosp+accumulate": ("method=nosp", "accumulate=2", "eval_every=3"),
}


def machine() -> str:
    """A hash of what plain torch makes of some steps of a small network, on one thread."""
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layer = torch.nn.TransformerEncoderLayer(128, 2, 512, batch_first=True, activation="gelu")
    embed, head = torch.nn.Embedding(100, 128), torch.nn.Linear(128, 2)
    net = torch.nn.ModuleList([layer, embed, head])
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
    for _ in range(3):
        ids = torch.randint(100, (8, 17))
        torch.nn.functional.cross_entropy(head(layer(embed(ids))[:, 0]), ids[:, 0] % 2).backward()
        optimizer.step()
    digest = hashlib.sha256()
    for parameter in net.parameters():
        digest.update(parameter.detach().numpy().tobytes())
    torch.random.set_rng_state(state)
    torch.set_num_threads(threads)
    return digest.hexdigest()[:16]


def written(folder: Path) -> dict[str, str]:
    """Writes 64, 32 and 32 made sentences; returns their files."""
    files = {}
    for number, (name, count) in enumerate((("train", 64), ("validation", 32), ("test", 32))):
        lines = ["text,label", *(f"{text},{label}" for text, label in sentences(count, number))]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
        files[name] = str(folder / f"{name}.csv")
    return files


class Golden:
    """Makes the cells, each in turn.

    Args:
        folder: an empty folder for data and runs.
    """

    def __init__(self, folder: Path):
        self.files = written(folder)
        os.environ["KEEPFRAC_MULTIRUN"] = str(folder / "multirun")
        identity.register()
        self.cells: dict[str, Callable[[], dict]] = {
            **{name: self._plain(name, f"method={name}", *MORE.get(name, ())) for name in METHODS},
            **{name: self._plain(name, *words) for name, words in EXTRA.items()},
            **{f"{name}_e2e": self._decoder(name, "nosp") for name in SMALL},
            "llama_tiny_e2e+taylor": self._decoder("llama_tiny", "taylor"),
            "gpt2_tiny_e2e+lora": self._decoder("gpt2_tiny", "lora", "method.rank=4"),
            "resumed": self._resumed,
            "two_processes": self._plain("two", "method=norm", "hardware=cpus"),
            "distill_prune+teacher": lambda: self._under_teacher("distill_prune"),
            "sparsebert+teacher": lambda: self._under_teacher("sparsebert"),
        }

    def _compose(self, name: str, *words: str):
        base = ["model=bert_tiny", "task=csv", *(f"task.{key}_file={path}" for key, path in self.files.items())]
        return self._composed(name, [*base, "steps=8", "batch_size=8", "checkpoint_every=3", *words])

    def _composed(self, name: str, words: list[str]):
        base = ["logger=csv", "hardware.precision=32-true", "hardware.threads=1", "lr=1e-3", "probe_steps=0"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("config", overrides=[*base, f"name={name}", "keep_frac=0.5", *words])

    def _plain(self, name: str, *words: str) -> Callable[[], dict]:
        return lambda: outcome(self._compose(name, *words))

    def _decoder(self, model: str, method: str, *words: str) -> Callable[[], dict]:
        base = [f"model={model}", *SMALL[model], "task=e2e", f"task.data_dir={ROOT}/tests/fixtures/e2e"]
        base += ["task.max_length=80", "task.max_new_tokens=24", "task.eval_examples=3", "task.beams=2"]
        base += ["steps=6", "batch_size=8", "eval_batch_size=2", f"method={method}", *words]
        return lambda: outcome(self._composed(f"{model}_{method}", base))

    def _resumed(self) -> dict:
        cfg = self._compose("resumed", "method=l0", *GATES)
        with killed_at(5):
            run(cfg)
        return outcome(cfg)

    def _under_teacher(self, method: str) -> dict:
        teacher = self._compose("teacher", "method=nosp", "seed=3")
        run(teacher)
        found = outcome(
            self._compose(f"{method}_taught", f"method={method}", f"distill.teacher={identity.cell(teacher).folder}")
        )
        found["identity of this machine"] = found.pop("identity")  # the teacher counts by its weights' bits
        return found


def outcome(cfg) -> dict:
    """What the run of a configuration left, short: hash of the delivered weights, scores, kept, identity."""
    found = run(cfg)
    folder = identity.cell(cfg).folder
    digest = hashlib.sha256()
    for path in sorted((folder / "model").glob("*.safetensors")):
        for name, tensor in sorted(load_file(path).items()):
            digest.update(f"{path.name} {name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.contiguous().numpy().tobytes())
    return {
        "identity": found["identity"],
        "weights": digest.hexdigest()[:16],
        "scores": found["scores"],
        "kept": {key: value for key, value in found["kept"].items() if "seconds" not in key},
    }


GLUE = ("cola", "mnli", "mrpc", "qnli", "qqp", "rte", "sst2", "stsb", "wnli")
GROUPS = ("model", "task", "augment", "distill", "backward", "regularize", "hardware", "export")


def identities(files: dict[str, str]) -> dict[str, str]:
    """The identity that each option of each group gives a cell, where its data and weights are here."""
    found = {}
    base = ["task=csv", *(f"task.{key}_file={path}" for key, path in files.items()), "hardware.precision=32-true"]
    for group in GROUPS:
        for path in sorted((CONF / group).glob("*.yaml")):
            words = [*([] if group == "task" else base), "model=bert_tiny", f"{group}={path.stem}"]
            if group == "task":
                words += ["hardware.precision=32-true"]
                words += [f"task.data_dir={ROOT}/tests/fixtures/glue"] if path.stem in GLUE else []
            with initialize_config_dir(str(CONF), version_base="1.3"):
                cfg = compose("config", overrides=words)
            try:
                found[f"{group}={path.stem}"] = identity.cell(cfg).identity
            except UserError:
                continue  # data, weights or a folder that are not here
    return found


def main() -> None:
    """Writes golden.json."""
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        golden = Golden(Path(folder))
        named = identities(golden.files)
        for name, make in golden.cells.items():
            made[name] = make()
            sys.stderr.write(f"{name}: {made[name]['weights']}\n")
    FILE.write_text(json.dumps({"machine": machine(), "identities": named, "cells": made}, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.update(HF_HUB_OFFLINE="1", KEEPFRAC_HUB="offline", OMP_NUM_THREADS="2")
    main()
