"""A delivered folder in a process that cannot import the project."""

import os
import subprocess
import sys

import torch

from tests.tiny import inputs

PROGRAM = """
import sys, torch, transformers
folder, kind, attention, batch, again = sys.argv[1:]
auto = getattr(transformers, kind)
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
    torch.save(net(**torch.load(batch)).logits, again + ".pt")
net.save_pretrained(again)
"""


def logits_elsewhere(folder, again, kind="AutoModelForSequenceClassification", attention="eager") -> torch.Tensor:
    """Loads the folder there and saves it to another; returns the logits of `inputs()`."""
    torch.save(inputs(), batch := again.with_suffix(".batch"))
    command = [sys.executable, "-c", PROGRAM, folder, kind, attention, batch, again]
    environment = {**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(word) for word in command], cwd=again.parent, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return torch.load(again.with_suffix(".pt"))
