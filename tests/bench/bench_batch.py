"""The largest batch of which a training step fits into a stated amount of memory: dense, checkpointing, `late`.

    python -m tests.bench.bench_batch [--limit-mib 2048] [--model minilm] [--length 128] [--dtype fp32] ...

Each trial is a process of its own that makes two whole steps (forward, backward, AdamW) of a classifier on `batch`
sentences of full length and reports the most memory that it ever held resident: weights, gradients, optimizer, code
and all. It fits where that is at most the limit. The batch is doubled until it does not, then bisected to 1 in 20.
Written to --out: rows of method, keep_frac, batch, peak_mib, and the settings. Time does not matter here, so a busy
machine will do.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from keepfrac.settings import in_range, whole
from keepfrac.storage.commands import Parser, option

ROOT = Path(__file__).resolve().parents[2]
MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
OUT = Path("multirun/records/bench_batch.json")
METHODS = ("nosp", "checkpoint", "recompute_gelu", "norm", "late", "late_recompute")
EXACT = ("nosp", "checkpoint", "recompute_gelu")
OVERRIDES = {"late_recompute": ("late", "method.context=recompute")}
MIB = 1 << 20
COUNT, SHARE = option(whole(1)), option(in_range(0, 1, "(]"))


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--limit-mib", type=COUNT, default=2048)
    parser.add_argument("--model", choices=MODELS, default="minilm", help="a yaml of conf/model")
    parser.add_argument("--length", type=COUNT, default=128)
    parser.add_argument("--keep-frac", type=SHARE, default=0.3)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--most", type=COUNT, default=4096, help="no larger batch is tried")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--trial", nargs=2, metavar=("METHOD", "BATCH"), help=argparse.SUPPRESS)
    return parser.parse_args(given)


def trial(options: argparse.Namespace) -> int:
    """Makes two steps in this process; returns the most MiB that were resident."""
    import torch
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from keepfrac.models.load import load_net, load_tokenizer
    from tests.bench.arms import CONF, Arm, built

    method, batch = options.trial[0], int(options.trial[1])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        model = OmegaConf.to_container(compose("config", [f"model={options.model}"]).model, resolve=True)
    vocabulary = len(load_tokenizer(model))
    net = load_net(model, "sequence_classification", ("no", "yes"), 2, vocabulary).train()
    name, *overrides = OVERRIDES.get(method, (method,))
    net = built(Arm(method, name, overrides=tuple(overrides)), options.keep_frac, net, copied=False).net
    optimizer = torch.optim.AdamW(net.parameters(), 1e-5, fused=True)
    ids = torch.randint(5, vocabulary, (batch, options.length))
    labels = torch.arange(batch) % 2
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bf16"):
            loss = net(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def peak(options: argparse.Namespace, method: str, batch: int) -> int | None:
    """Returns the peak MiB of a trial in a process of its own; None: it does not fit."""
    command = [sys.executable, "-m", "tests.bench.bench_batch", "--trial", method, str(batch)]
    for key in ("limit_mib", "model", "length", "keep_frac", "dtype"):
        command += [f"--{key.replace('_', '-')}", str(getattr(options, key))]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, preexec_fn=lambda: _bound(options.limit_mib)
    )
    if ended.returncode and not _out_of_memory(ended):
        raise RuntimeError(f"{method}, batch {batch}: {ended.stderr[-2000:]}")
    found = int(ended.stdout.split()[-1]) if ended.returncode == 0 else None
    sys.stderr.write(f"{method}, batch {batch}: {found or 'out of memory'} MiB\n")
    return found if found is not None and found <= options.limit_mib else None


def _bound(limit_mib: int) -> None:
    """A trial that is far too large must not take the machine's memory: twice the limit is the end of it."""
    resource.setrlimit(resource.RLIMIT_DATA, (2 * limit_mib * MIB, 2 * limit_mib * MIB))


def _out_of_memory(ended: subprocess.CompletedProcess) -> bool:
    return ended.returncode < 0 or "memory" in ended.stderr or "bad_alloc" in ended.stderr


def largest(fits: Callable[[int], bool], most: int) -> int:
    """Returns the largest batch that fits, to 1 in 20; 0 where none of at least 1 does."""
    low, high = 0, 8
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > max(1, low // 20):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def row(options: argparse.Namespace, method: str) -> dict:
    """The largest batch of one method, and what it took."""
    peaks: dict[int, int | None] = {}

    def fits(batch: int) -> bool:
        peaks[batch] = peak(options, method, batch)
        return peaks[batch] is not None

    batch = largest(fits, options.most)
    keep_frac = 1.0 if method in EXACT else options.keep_frac
    found = {"method": method, "keep_frac": keep_frac, "batch": batch, "peak_mib": peaks.get(batch)}
    settings = {key: getattr(options, key) for key in ("limit_mib", "model", "length", "dtype")}
    return found | settings | {"device": "cpu"}


def main(given: list[str] | None = None) -> None:
    options = arguments(given)
    if options.trial:
        sys.stdout.write(f"{trial(options)}\n")
        return
    rows = [row(options, method) for method in options.methods]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")
    base = next((one["batch"] for one in rows if one["method"] == "nosp"), None)
    sys.stdout.write(
        f"largest batch of {options.length} tokens, {options.model}, {options.dtype}, within {options.limit_mib} MiB\n"
    )
    for one in rows:
        times = f"{one['batch'] / base:.2f} x dense" if base else ""
        sys.stdout.write(f"{one['method']:16s} {one['batch']:6d}   {one['peak_mib'] or 0:6d} MiB   {times}\n")


def test_the_search_finds_the_largest() -> None:
    assert largest(lambda batch: batch <= 5, 4096) == 5
    assert largest(lambda batch: batch <= 77, 4096) in range(73, 78)
    assert largest(lambda batch: True, 50) in range(48, 51)
    assert largest(lambda batch: False, 50) == 0


if __name__ == "__main__":
    main()
