"""What a run delivers in addition to the weights: sizes, the counts of a cut model, another form of it."""

import copy
import json
import logging
import shutil
import traceback
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from keepfrac.errors import UserError
from keepfrac.measurement import costs
from keepfrac.models.cut import is_cut
from keepfrac.models.dense_reference import account_of, original_parameters
from keepfrac.models.export import export
from keepfrac.models.load import reload, save_model
from keepfrac.prune import masks
from keepfrac.storage.files import write_atomically
from keepfrac.storage.redact import redact
from keepfrac.tensors.barrier import wait_for_all
from keepfrac.training.finetune import FineTune

log = logging.getLogger(__name__)

EXAMPLES = "examples.json"
FOLDERS = ("stock_uniform", "stock_padded", "sparse", "sparse_int8")
"""Forms that are a model's folder: they need its tokenizer."""
WEIGHTS = (".safetensors", ".bin", ".index.json")


def sizes(net, loaded, folder: Path) -> dict:
    """Returns the sizes of the delivered model and of its dense original, however many runs ago it was cut.

    Args:
        net: what is delivered.
        loaded: the model that the run began with.
        folder: the run's.
    """
    return {**costs.size(net, folder / "model"), "params_dense": original_parameters(loaded)}


def write_account(net, folder: Path) -> None:
    """Writes info.txt where the model is a cut one: what was kept, as the original counted and in full."""
    if is_cut(net):
        write_atomically(folder / "info.txt", account_of(net).info_txt())


def limits_of(tokenizer) -> tuple[dict | None, dict | None]:
    """Returns how a tokenizer truncates and pads where a call says nothing; None, None without a fast one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return (None, None) if backend is None else (backend.truncation, backend.padding)


def limited(tokenizer, truncation: dict | None, padding: dict | None):
    """Returns a tokenizer that truncates and pads so: what a run did with it, or found in a cache, leaves no trace."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return tokenizer
    new = copy.deepcopy(tokenizer)
    backend = new.backend_tokenizer
    backend.enable_truncation(**truncation) if truncation else backend.no_truncation()
    if padding:  # a method may have given the token another id
        number = backend.token_to_id(padding["pad_token"])
        padding = padding if number is None else {**padding, "pad_id": number}
    backend.enable_padding(**padding) if padding else backend.no_padding()
    return new


def write_model(module: FineTune, tokenizer, folder: Path, writes: bool) -> None:
    """Writes model/ of a run, and the count of a cut one; returns once all processes can read it.

    Args:
        module: the method, finished.
        tokenizer: of its model.
        folder: the run's.
        writes: whether this process is the one that does.
    """
    if writes:
        save_model(module.net, tokenizer, folder / "model", module.masks)
        for path, content in module.task.beside_model(module.net.config).items():
            write_atomically(folder / "model" / path, content)
        write_account(module.net, folder)
    wait_for_all()


def read_model(folder: Path, head: str, attention: str) -> nn.Module:
    """Returns the delivered model of a run, exactly as a user would load it."""
    return reload(folder / "model", head, attention)


def write_examples(examples: Mapping[str, list[dict]], folder: Path) -> None:
    """Writes examples.json where the task generates: by split, what was generated for each MR, and its references."""
    if examples:
        write_atomically(folder / EXAMPLES, json.dumps(examples, indent=1, ensure_ascii=False) + "\n")


def export_form(net, form: str, folder: Path, rows: Mapping[str, Tensor], task: str) -> dict[str, str | int]:
    """Writes another form of the delivered model into export/, with the other files of model/.

    Args:
        net: what is delivered.
        form: see `models.export`.
        folder: the run's.
        rows: inputs of one batch.
        task: name of the task that the model has its head from.

    Returns:
        form, path within the run's folder, and bytes of what the form itself takes.

    Raises:
        UserError: it cannot be written; the message says how to go on with the model, which is there.
    """
    try:
        path = export(net.cpu().eval(), form, folder / "export", rows)
        files = path.rglob("*") if path.is_dir() else [path]
        weights = sum(file.stat().st_size for file in files if file.is_file())
        if form in FOLDERS:
            _copy_other_files(folder / "model", path, with_masks=form.startswith("sparse"))
    except Exception as error:  # a tracer raises many kinds
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        again = f"epochs=0 task={task} model=from_run model.run={folder}"
        raise UserError(
            f"{reason}; the model itself is there: go on with {again} export=... (and the task.* words of this run)"
        ) from error
    return {"form": form, "path": str(path.relative_to(folder)), "bytes": weights}


def try_export(net, form: str, folder: Path, rows: Mapping[str, Tensor], task: str) -> dict[str, str | int]:
    """As `export_form`; a form that is refused costs neither the training nor the scores: the error is returned."""
    try:
        return export_form(net, form, folder, rows, task)
    except UserError as error:
        if not isinstance(error.__cause__, UserError):
            log.warning("%s", redact(traceback.format_exc()))
        return {"form": form, "error": redact(" ".join(str(error).split()))}


def _copy_other_files(model: Path, target: Path, *, with_masks: bool) -> None:
    """Copies tokenizer and the like; the masks only where the weights have the shapes that they were made for."""
    for path in model.iterdir():
        weights = path.name.endswith(WEIGHTS) and not (with_masks and path.name == masks.FILE)
        if path.is_file() and not weights and path.name != "config.json":
            shutil.copyfile(path, target / path.name)
