"""Memory and time of a backward pass: dense, exact baselines, sparse ones, `late`. One table, one picture, JSON rows.

    make bench-backward      or      python -m tests.bench.bench_backward [--quick] [--threads 2] [--rounds 5] ...

On BERT-base layers, 32 sentences of 128 tokens, fp32 and bf16 (autocast), in three batches: full; padded, 62 % of the
tokens real; full without dropout. Methods are built from conf/method/*.yaml. All arms run in turn, round by round, so
that a busy moment hits all of them; time_ratio is the median over rounds of an arm's time by dense's in the same round.
Use an idle machine: beside another busy process the many short parallel sections of `late` wait for the core that is
taken, and it looks several times slower.

    bytes_ratio           saved bytes, dropout masks at one byte a number, by what dense saves then with a fused
                          attention (16.5 U a layer in fp32, U = 4 bytes x tokens x 768)
    bytes_ratio_measured  by what dense really saved here (on a CPU more: its dropout noise is in floats)
    peak_ratio            the highest memory within a step beyond weights and gradients, by dense's
    cosine_dw, norm_dw    of the linears' weight gradients: mean cosine to dense's, and norm by dense's
    error_dx              relative error of the gradient to the embeddings' output
Fidelity is that of MiniLM (six layers, real text, 30 dense steps of training, dropout off).

--device cuda measures on an NVIDIA GPU, at 128 and 512 tokens: times by CUDA events, the peak by the allocator's own
count, the GPU's name in the record, which is another file. No such record is there: it never ran on a GPU.
"""

import argparse
import itertools
import json
import os
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from keepfrac.settings import in_range, whole
from keepfrac.sparse.kernels import prepare
from keepfrac.storage.commands import Parser, option
from tests.bench.arms import DENSE, Arm, groups, is_there, padded
from tests.bench.frontier import draw
from tests.bench.ruler import Batch, Fidelity, measure

COUNT, SHARE = option(whole(1)), option(in_range(0, 1, "(]"))
RECORDS = {
    "cpu": Path("multirun/records/bench_backward.json"),
    "cuda": Path("multirun/records/bench_backward_cuda.json"),
}
LENGTHS = {"cpu": [128], "cuda": [128, 512]}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCHES = ("full", "padded", "no dropout")
COLUMNS = (
    "batch", "config", "keep_frac", "dtype", "bytes_ratio", "bytes_ratio_measured", "peak_ratio", "time_ratio",
    "seconds", "cosine_dw", "norm_dw", "error_dx",
)  # fmt: skip
EXACT = {"cosine_dw": 1.0, "norm_dw": 1.0, "error_dx": 0.0}


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", "--repeats", type=COUNT, default=5)
    parser.add_argument("--threads", type=COUNT, default=torch.get_num_threads())
    parser.add_argument("--layers", type=COUNT, default=2)
    parser.add_argument("--rows", type=COUNT, default=32)
    parser.add_argument("--length", type=COUNT, nargs="+", help="128; on a GPU 128 and 512")
    parser.add_argument("--device", choices=tuple(RECORDS), default="cpu")
    parser.add_argument("--real", type=SHARE, default=0.62, help="share of real tokens in the padded batch")
    parser.add_argument("--keep", type=SHARE, nargs="+", default=[0.1, 0.3, 0.5, 1.0])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--groups", nargs="+", choices=groups((0.3,)), default=list(groups((0.3,))))
    parser.add_argument("--batches", nargs="+", choices=BATCHES, default=list(BATCHES))
    parser.add_argument("--no-fidelity", action="store_true")
    parser.add_argument("--quick", action="store_true", help="does it work? small, and no record is written")
    parser.add_argument("--draw", action="store_true", help="measure nothing: table and picture of --out again")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args(given)
    if chosen.device == "cuda" and not (chosen.draw or torch.cuda.is_available()):
        parser.error("--device cuda: PyTorch finds no NVIDIA GPU here")
    if chosen.quick:
        chosen.rounds, chosen.layers, chosen.rows, chosen.length, chosen.keep = 1, 1, 4, [16], [0.3]
        chosen.out = chosen.out or Path("multirun/bench_backward_quick.json")
    chosen.length = chosen.length or LENGTHS[chosen.device]
    chosen.out = chosen.out or RECORDS[chosen.device]
    if chosen.draw and not chosen.out.is_file():
        parser.error(f"--draw: there is no {chosen.out}")
    return chosen


def arms_of(kind: str, options: argparse.Namespace) -> list[tuple[str, Arm]]:
    """(group, arm) of one kind of batch, but for dense."""
    keep = tuple(options.keep)
    if kind == "full":
        every = groups(keep)
        found = [(name, arm) for name in options.groups for arm in every[name]]
    elif kind == "padded":
        found = [("late" if arm.method == "late" else "baselines", arm) for arm in padded(keep)]
    else:
        found = [("late", arm) for arm in groups((0.3,))["late"][:2]]
    return [(name, arm) for name, arm in found if is_there(arm)]


def tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def conditions(options: argparse.Namespace) -> dict:
    """What the figures depend on besides the arms; the same for all of them."""
    mkl = torch.backends.mkl.is_available()
    where = {
        "device": "cpu",
        "gemm": f"fp32 by {'MKL' if mkl else 'the BLAS of this torch'}, bf16 by oneDNN",
        "allocator": os.environ.get("LD_PRELOAD") or "the C library's",
    }
    if options.device == "cuda":
        precision = torch.get_float32_matmul_precision()  # "highest": no TF32
        where = {
            "device": torch.cuda.get_device_name(),
            "gemm": f"cuBLAS {torch.version.cuda}, fp32 precision {precision}",
            "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF") or "PyTorch's caching one",
        }
    return {
        **where,
        "kernels": prepare("auto", torch.device(options.device)),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
        "layers": options.layers,
        "rows": options.rows,
        "rounds": options.rounds,
    }


def run(options: argparse.Namespace) -> list[dict]:
    """Measures everything that was asked for; returns the rows."""
    size = (2, 4) if options.quick else (30, 32)
    fidelity = None if options.no_fidelity else Fidelity(*size, options.device)
    at, rows = conditions(options), []
    for name in options.dtypes:
        chosen = {kind: arms_of(kind, options) for kind in options.batches}
        every = list(dict.fromkeys(arm for arms in chosen.values() for _, arm in arms))
        near = fidelity(every, DTYPES[name]) if fidelity else {}
        for kind, length in itertools.product(chosen, options.length):
            arms = chosen[kind]
            real, dropout = options.real if kind == "padded" else 1.0, 0.0 if kind == "no dropout" else 0.1
            tell(f"{name}, {kind}, {length} tokens")
            batch = Batch(options.rows, length, real, dropout, options.layers, options.device)
            group = {arm: name for name, arm in arms} | {DENSE: "baselines"}
            found = measure(list(group)[:-1], batch, DTYPES[name], options.rounds, tell)
            for (arm, keep_frac), row in found.items():
                quality = EXACT if arm.exact else near.get((arm, keep_frac), dict.fromkeys(EXACT))
                what = {"config": arm.config, "keep_frac": keep_frac, "dtype": name, "batch": kind}
                more = {"group": group[arm], "settings": [arm.method, *arm.overrides], "real": real}
                rows.append({**what, **row, **quality, **more, "dropout": dropout, **at, "length": length})
    return rows


def show(rows: list[dict], as_markdown: bool) -> None:
    cells = [
        [f"{row[c]:.3f}" if isinstance(row[c], float) and c != "keep_frac" else str(row[c]) for c in COLUMNS]
        for row in rows
    ]
    cells = [["" if cell == "None" else cell for cell in line] for line in cells]
    if as_markdown:
        lines = [f"| {' | '.join(line)} |" for line in ([*COLUMNS], ["---"] * len(COLUMNS), *cells)]
        sys.stdout.write("\n".join(lines) + "\n")
        return
    one = rows[0]
    table = Table(
        *COLUMNS,
        title=f"{one['layers']} BERT-base layers, {one['rows']} x {one['length']} tokens, {one['threads']} threads,"
        f" {one['rounds']} rounds, {one['device']}, torch {one['torch']}; GEMM: {one['gemm']};"
        f" allocator: {one['allocator']}",
    )
    for line in cells:
        table.add_row(*line)
    Console(width=170).print(table)


def main(given: list[str] | None = None) -> list[dict]:
    options = arguments(given)
    if options.draw:
        rows = json.loads(options.out.read_text())
    else:
        torch.set_num_threads(options.threads)
        rows = run(options)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=1) + "\n")
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    for length in lengths:
        stem = options.out.stem if len(lengths) == 1 else f"{options.out.stem}_{length}"
        some = [row for row in rows if row["length"] == length]
        draw(some, options.out.with_name(f"{stem}.svg"))
        show(some, options.markdown)
    return rows


def test_memory_and_time_are_saved(tmp_path) -> None:
    """A short run by `make bench`: bytes always, the time with room for a machine that is not idle."""
    given = ["--rounds", "5", "--dtypes", "fp32", "--keep", "0.3", "--groups", "late", "forward", "--batches", "full"]
    rows = {row["config"]: row for row in main([*given, "--out", str(tmp_path / "rows.json")])}
    assert rows["late"]["bytes_ratio"] <= 0.17
    load = f"the load was {rows['late']['load']:.1f} at the start: this needs an idle machine"
    assert rows["late"]["time_ratio"] <= 0.85, load
    # for columns the arithmetic allows (2 + keep) / 3 of the linears: 0.77 of the step
    assert rows["norm"]["time_ratio"] <= 0.90, load
    assert rows["late"]["cosine_dw"] is None or rows["late"]["cosine_dw"] >= 0.92


def test_lora_is_no_dearer_than_pefts(tmp_path) -> None:
    """`make bench-lora`: by 1.03, which the medians of so few rounds may differ by of themselves."""
    given = ["--rounds", "9", "--keep", "0.3", "--groups", "adapters", "--batches", "full", "--length", "64"]
    rows = main([*given, "--no-fidelity", "--out", str(tmp_path / "rows.json")])
    for dtype in DTYPES:
        dense, lora, peft, _ = (row for row in rows if row["dtype"] == dtype)
        assert lora["saved_bytes"] <= peft["saved_bytes"] < dense["saved_bytes"]
        assert lora["time_ratio"] <= 1.03 * peft["time_ratio"]


if __name__ == "__main__":
    main()
