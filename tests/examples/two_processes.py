"""Accelerate on two CPU processes.

accelerate launch --cpu --num_processes 2 tests/examples/two_processes.py FOLDER [KEEP_FRAC STORE]
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator

import keepfrac
from tests.examples import made


def main(folder: Path, keep_frac: float = 0.3, store: str = "8bit") -> None:
    """Trains, and leaves the model of the first process and a fingerprint of each."""
    accelerator = Accelerator(cpu=True)
    model = made.model()
    handle = keepfrac.save_less(model, keep_frac=keep_frac, store=store)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(made.rows(), batch_size=16 // accelerator.num_processes)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    for batch in loader:
        accelerator.backward(prepared(**batch).loss)
        optimizer.step()
        optimizer.zero_grad()
    kept = handle.kept()
    handle.restore()
    sums = {name: float(parameter.double().sum()) for name, parameter in model.named_parameters()}
    torch.save({"kept": kept["achieved"], "sums": sums}, folder / f"process{accelerator.process_index}.pt")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        keepfrac.save(model, folder / "model")
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(kind(word) for kind, word in zip((float, str), sys.argv[2:], strict=False)))
