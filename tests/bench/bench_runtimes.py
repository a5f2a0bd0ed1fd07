"""Do zeros in weights make inference faster? A model dense and sparse in torch, onnxruntime and OpenVINO.

    python -m tests.bench.bench_runtimes RUN ... [--keep 0.05] [--repeats 50] [--batches 8 1] [--lengths 128] [--out F]

RUN is the folder of a run or of any model. Its sparse side is the model as it is, with the zeros that it has; of a
model without zeros `--keep` leaves that share of each of the encoder's matrices, the largest. Its dense side has the
shapes of the dense original and no zeros. All sides and runtimes take turns, forward by forward, in one process with
one thread, in fp32 (OpenVINO would choose bf16 by itself, where the processor has it), after two rounds of warm-up.

p50 and p95 are by the nearest rank. `differs` is the largest difference of the outputs to torch's, relative to the
largest of them. A runtime that is not installed says what to install. --out writes the rows as JSON, too.
"""

import argparse
import contextlib
import copy
import io
import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from keepfrac.errors import UserError
from keepfrac.measurement.folder import model_folder
from keepfrac.measurement.latency import load, percentile
from keepfrac.models.export import ONNX_PACKAGES, _Logits, onnx
from keepfrac.settings import in_range, whole
from keepfrac.storage.commands import Parser, option
from keepfrac.storage.files import write_atomically
from keepfrac.storage.provenance import device_name
from keepfrac.tensors.clock import interleaved_seconds

THREADS = 1
RUNTIMES = {"torch": (), "onnxruntime": ONNX_PACKAGES, "openvino": (*ONNX_PACKAGES[:2], "openvino")}
"""Runtime -> the packages that it needs."""
Inputs = Mapping[str, Tensor]
Forward = Callable[[], object]


COUNT, SHARE = option(whole(1)), option(in_range(0, 1, "(]"))


def arguments(given: list[str] | None) -> argparse.Namespace:
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--keep", type=SHARE, help="share of a matrix that is left, of models without zeros")
    parser.add_argument("--repeats", type=COUNT, default=50, help="rounds after the warm-up")
    parser.add_argument("--batches", type=COUNT, nargs="+", default=[8, 1])
    parser.add_argument("--lengths", type=COUNT, nargs="+", default=[128])
    parser.add_argument("--out", type=Path, help="a JSON file for the rows")
    return parser.parse_args(given)


def matrices(net: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of the linears in the encoder's layers, by name."""
    linears = ((name, module) for name, module in net.named_modules() if isinstance(module, nn.Linear))
    return {name: module.weight for name, module in linears if ".layer." in name or ".layers." in name}


def zero_share(net: nn.Module) -> float:
    weights = matrices(net).values()
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


@torch.no_grad()
def keep_largest(net: nn.Module, keep: float) -> None:
    """Sets all but the largest `keep` of each matrix to zero, by rank."""
    for weight in matrices(net).values():
        smallest = weight.abs().flatten().argsort()[: weight.numel() - round(keep * weight.numel())]
        weight.view(-1)[smallest] = 0.0


def sides(folder: Path, keep: float | None) -> dict[str, nn.Module]:
    """The model with its zeros, and the dense one."""
    found = load(model_folder(folder))
    sparse = copy.deepcopy(found["own"]).cpu().float()
    if not matrices(sparse):
        raise UserError(f"{folder}: no linears in layers of an encoder")
    if zero_share(sparse) < 1e-3:
        if keep is None:
            raise UserError(f"{folder}: its weights hold no zeros; --keep 0.05 leaves a twentieth of them")
        keep_largest(sparse, keep)
    return {"dense": found["dense"].cpu().float().eval(), "sparse": sparse.eval()}


def example(net: nn.Module, batch: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(1000, 2000, (batch, length), generator=torch.Generator().manual_seed(0))
    ids = ids % net.config.vocab_size
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def to_file(net: nn.Module, inputs: Inputs, path: Path) -> None:
    """Writes the ONNX file that the other runtimes read, without the exporter's own report."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.inference_mode(False), contextlib.redirect_stdout(io.StringIO()):
        onnx(net, inputs, path)


def in_torch(net: nn.Module, inputs: Inputs) -> Forward:
    called = _Logits(net)
    return lambda: called(**inputs).numpy()


def in_onnxruntime(path: Path, inputs: Inputs) -> Forward:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    fed = {name: value.numpy() for name, value in inputs.items()}
    return lambda: session.run(None, fed)[0]


def in_openvino(path: Path, inputs: Inputs) -> Forward:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape({name: list(value.shape) for name, value in inputs.items()})
    asked = {"INFERENCE_NUM_THREADS": THREADS, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(model, "CPU", asked).create_infer_request()
    fed = {name: value.numpy() for name, value in inputs.items()}
    return lambda: request.infer(fed)[0]


IN_FILE = {"onnxruntime": in_onnxruntime, "openvino": in_openvino}


def ready(console: Console) -> list[str]:
    """The runtimes that are installed; of the others says what to install."""
    found = []
    for runtime, packages in RUNTIMES.items():
        missing = [name for name in packages if find_spec(name) is None]
        if missing:
            console.print(f"{runtime}: not installed: pip install {' '.join(missing)}")
        else:
            found.append(runtime)
    return found


def forwards(nets: Mapping[str, nn.Module], paths: Mapping[str, Path], inputs: Inputs, runtimes: list[str]) -> dict:
    """(runtime, side) -> a forward pass."""
    made = {}
    for runtime in runtimes:
        for side, net in nets.items():
            in_file = IN_FILE.get(runtime)
            made[runtime, side] = in_file(paths[side], inputs) if in_file else in_torch(net, inputs)
    return made


@torch.inference_mode()
def measured(folder: Path, chosen: argparse.Namespace, runtimes: list[str]) -> list[dict]:
    """Rows of one model: a runtime, a side, a batch and a length."""
    nets = sides(folder, chosen.keep)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        paths = {side: Path(scratch) / side / "model.onnx" for side in nets}
        if set(runtimes) & set(IN_FILE):
            for side, net in nets.items():
                to_file(net, example(net, 2, max(chosen.lengths)), paths[side])
        for batch in chosen.batches:
            for length in chosen.lengths:
                inputs = example(nets["sparse"], batch, length)
                calls = forwards(nets, paths, inputs, runtimes)
                differs = differences(calls)
                seconds = interleaved_seconds(calls, chosen.repeats, 2, "cpu")
                where = {"run": folder.name, "batch": batch, "length": length, "repeats": chosen.repeats}
                rows += [where | row(key, seconds, nets, differs) for key in calls]
    return rows


def differences(calls: Mapping[tuple[str, str], Forward]) -> dict[tuple[str, str], float]:
    """Largest difference of the logits to torch's, relative to the largest of them."""
    found = {}
    for (runtime, side), call in calls.items():
        expected = np.asarray(calls["torch", side]())
        found[runtime, side] = float(np.abs(np.asarray(call()) - expected).max() / np.abs(expected).max())
    return found


def row(key: tuple[str, str], seconds: Mapping, nets: Mapping[str, nn.Module], differs: Mapping) -> dict:
    runtime, side = key
    p50 = percentile(seconds[key], 0.50)
    return {
        "runtime": runtime,
        "side": side,
        "zeros": zero_share(nets[side]),
        "p50_ms": 1e3 * p50,
        "p95_ms": 1e3 * percentile(seconds[key], 0.95),
        "to_dense": p50 / percentile(seconds[runtime, "dense"], 0.50),
        "differs": differs[key],
    }


def table(rows: list[dict]) -> Table:
    made = Table("batch", "length", "runtime", "side", "zeros", "p50 ms", "p95 ms", "to dense", "differs")
    made.title = rows[0]["run"]
    for one in rows:
        times = (f"{one['p50_ms']:.2f}", f"{one['p95_ms']:.2f}", f"{one['to_dense']:.3f}")
        place = (str(one["batch"]), str(one["length"]), one["runtime"], one["side"], f"{one['zeros']:.1%}")
        made.add_row(*place, *times, f"{one['differs']:.0e}")
    return made


def main(given: list[str] | None = None) -> int:
    chosen, console = arguments(given), Console(width=160)
    torch.set_num_threads(THREADS)
    console.print(f"{device_name('cpu')}, {THREADS} thread, fp32, {chosen.repeats} rounds in turns")
    runtimes, rows = ready(console), []
    try:
        for folder in chosen.folders:
            rows += (found := measured(folder, chosen, runtimes))
            console.print(table(found))
    except UserError as error:
        console.print(f"error: {error}")
        return 1
    if chosen.out:
        write_atomically(chosen.out, json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
