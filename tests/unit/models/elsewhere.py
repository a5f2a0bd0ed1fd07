"""Delivered folders in a process that cannot import the project."""

import os
import subprocess
import sys

import torch

from tests.tiny import inputs

PROGRAM = """
import sys, torch, transformers
kind, attention, batch, *folders = sys.argv[1:]
auto = getattr(transformers, kind)
batch = torch.load(batch)
for folder, again in zip(folders[::2], folders[1::2]):
    try:
        auto.from_pretrained(folder)
        raise SystemExit("loaded without trust")
    except ValueError as error:
        assert "trust_remote_code" in str(error), error
    net = auto.from_pretrained(folder, trust_remote_code=True, attn_implementation=attention).eval()
    for name in {"AutoModel", "AutoModelForMaskedLM"} & {*net.config.auto_map}:
        made = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
        assert type(made).__module__.startswith("transformers_modules"), type(made)
    assert not any(name.partition(".")[0] in ("src", "keepfrac") for name in sys.modules)
    with torch.no_grad():
        torch.save(net(**batch).logits, again + ".pt")
    if kind == "AutoModelForCausalLM":
        one = {key: value[:1] for key, value in batch.items()}
        found = [net.generate(**one, max_new_tokens=4, do_sample=False, use_cache=use) for use in (True, False)]
        assert torch.equal(*found) and found[0].shape[1] > one["input_ids"].shape[1]
    net.save_pretrained(again)
"""


def logits_elsewhere(folder, again, kind="AutoModelForSequenceClassification", attention="eager") -> torch.Tensor:
    """Loads the folder there and saves it to another; returns the logits of `inputs()`."""
    return all_logits_elsewhere({folder: again}, kind, attention)[0]


def all_logits_elsewhere(folders, kind, attention="eager") -> list[torch.Tensor]:
    """The same for several folders, {folder: where to save it again}, in one process; decoders generate there too."""
    paths = [path for pair in folders.items() for path in pair]
    torch.save(inputs(), batch := paths[1].with_suffix(".batch"))
    command = [sys.executable, "-c", PROGRAM, kind, attention, batch, *paths]
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=paths[1].parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [torch.load(again.with_suffix(".pt")) for again in folders.values()]
