"""Loading and saving models by hub name, local folder, offline package or configuration.

The hub comes first (its local cache counts as the hub), then a local source, then one clear error.
"""

import copy
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from keepfrac.adapters.files import attach_saved
from keepfrac.errors import UserError
from keepfrac.models import pruned
from keepfrac.models.activation import use_activation
from keepfrac.models.configuration import configuration
from keepfrac.models.families import FAMILIES
from keepfrac.models.gguf import unpacked
from keepfrac.models.locate import locate, note
from keepfrac.models.vocabulary.tokenizers import built
from keepfrac.prune.masks import Masks
from keepfrac.storage import results
from keepfrac.storage.files import replacing
from keepfrac.storage.redact import first_line

log = logging.getLogger(__name__)

pruned.register_classes()  # from here on the Auto classes know cut models
HEADS = {
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "masked_lm": transformers.AutoModelForMaskedLM,
    "causal_lm": transformers.AutoModelForCausalLM,
}
# A task brings its own head, and an encoder its pooler; anything else that a checkpoint lacks is a mistake.
NEW_PARTS = {part for family in FAMILIES.values() for part in family.new_parts}
PACKED = "model.packed.safetensors"  # the file of `models.packed`
DROPOUTS = {
    "dropout": {key for family in FAMILIES.values() for key in family.dropouts},
    "attention_dropout": {key for family in FAMILIES.values() for key in family.attention_dropouts},
}
"""Keys of configurations by that of the `model` group; a family that is not in the table may use one of these too."""


def model_source(settings: dict) -> str:
    """Returns the folder or hub name that the `model` settings mean."""
    if settings["run"]:
        return str(Path(settings["run"]) / "model")
    return unpacked(locate(settings["name"], settings["package"]))


def load_tokenizer(settings: dict, texts: Callable[[], Sequence[str]] | None = None) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of the `model` settings: its own, or the one that `tokenizer` names or describes.

    Args:
        settings: the `model` group of the configuration.
        texts: gives the training texts, which a described one is made from.

    Raises:
        UserError: it cannot be loaded, or a vocabulary is to be made for weights that have one.
    """
    if isinstance(settings["tokenizer"], Mapping):
        if not settings["config"] or texts is None:
            raise UserError(
                f"model.tokenizer={settings['tokenizer']}: a vocabulary is made for random weights only"
                " (model.config), such as model=bert_small; leave it null"
            )
        return built(settings["tokenizer"], texts, configuration(settings["config"]))
    source = (
        unpacked(locate(settings["tokenizer"], settings["package"]))
        if settings["tokenizer"]
        else model_source(settings)
    )
    try:
        return AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"no tokenizer in {source}: {first_line(error)}") from error


def load_net(
    settings: dict, head: str, labels: tuple[str, ...] | None, num_labels: int, vocab_size: int, learns: bool = True
) -> nn.Module:
    """Returns the model with the head of a task, in fp32.

    Args:
        settings: the `model` group of the configuration.
        head: a key of HEADS.
        labels: names of the classes; None for a regression.
        num_labels: width of the head.
        vocab_size: length of the tokenizer, for a model built from its configuration.
        learns: whether it will be trained; else a run's model must have its head already.

    Raises:
        UserError: the folder is not a model's, or weights other than the head's and the pooler's are missing; or
            any, in a run's model that will not be trained.
    """
    silence_library_logging()
    net = _net(settings, head, labels, num_labels, vocab_size, learns)
    if settings["hidden_act"]:
        use_activation(net, settings["hidden_act"])
    return net


def _net(
    settings: dict, head: str, labels: tuple[str, ...] | None, num_labels: int, vocab_size: int, learns: bool
) -> nn.Module:
    if settings["config"]:
        config = configuration({"vocab_size": vocab_size, **settings["config"]})
        config = _configured(config, settings, labels, num_labels)
        return HEADS[head].from_config(config, attn_implementation=settings["attention"], dtype=torch.float32)
    source = model_source(settings)
    try:
        config = _configured(AutoConfig.from_pretrained(source), settings, labels, num_labels)
        net, info = HEADS[head].from_pretrained(
            source,
            config=config,
            attn_implementation=settings["attention"],
            dtype=torch.float32,  # else the checkpoint's own, which may be fp16
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"model {source}: {first_line(error)}") from error
    new = _refuse_missing(source, info)
    if new and settings["run"] and not learns:
        found = results.read(Path(settings["run"])) or {}
        task = ((found.get("config") or {}).get("task") or {}).get("name", "another task")
        raise UserError(
            f"epochs=0 with model.run={settings['run']}: its model, of task={task}, has no head that fits this task"
            f" ({', '.join(new)}), and a new one would learn nothing: type task={task}, or train with epochs >= 1"
        )
    attach_saved(net, Path(source))
    return net


def load_masked_lm(source: str) -> tuple[PreTrainedModel, bool]:
    """Returns the masked language model of a folder, fp32, in eval mode, and whether the folder holds its head.

    Raises:
        UserError: it is not a model's, or weights other than the head's and the pooler's are missing.
    """
    silence_library_logging()
    try:
        net, info = HEADS["masked_lm"].from_pretrained(source, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise UserError(f"model {source}: {first_line(error)}") from error
    _refuse_missing(source, info)
    return net.eval(), not info["missing_keys"]


def weights_note(settings: dict) -> str | None:
    """Returns what a reader of a result has to know of the weights that a run began with; None: nothing."""
    if settings["config"] or settings["run"]:
        return None
    return note(locate(settings["name"], settings["package"]))


def load_masks(settings: dict) -> Masks | None:
    """Returns the masks that live with the model of the `model` settings; None where it has none."""
    return None if settings["config"] else Masks.load(Path(model_source(settings)))


def _configured(config, settings: dict, labels: tuple[str, ...] | None, num_labels: int):
    """Returns a copy of a configuration with the task's labels and the settings of the `model` group."""
    config = copy.deepcopy(config)
    config.num_labels = num_labels
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    for key, names in DROPOUTS.items():
        if settings[key] is None:
            continue
        known = [name for name in names if hasattr(config, name)]
        if not known:
            raise UserError(f"model.{key}={settings[key]}: a {config.model_type} model has no such setting")
        for name in known:
            setattr(config, name, settings[key])
    return config


def _refuse_missing(source: str, info: dict) -> list[str]:
    """Returns the names of the weights that are new, the head's and the pooler's; raises a UserError for others."""
    mismatched = [key[0] if isinstance(key, tuple) else key for key in info.get("mismatched_keys", ())]
    new = sorted({*info["missing_keys"], *mismatched})
    wrong = [key for key in new if not set(key.split(".")) & NEW_PARTS]
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise UserError(f"model {source}: these weights are missing or have another shape: {shown}")
    if new:
        log.info("new weights, not in the checkpoint: %s", ", ".join(new))
    return new


def save_model(
    net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, masks: Masks | None = None
) -> None:
    """Writes a plain Hugging Face folder, with the masks, atomically."""
    try:
        with replacing(folder) as new:
            net.save_pretrained(new)
            tokenizer.save_pretrained(new)
            if masks is not None:
                masks.save(new)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error}; free space and type the same command again") from error


def reload(folder: Path, head: str, attention: str) -> nn.Module:
    """Returns the delivered model, exactly as a user would load it."""
    net, info = HEADS[head].from_pretrained(folder, attn_implementation=attention, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    attach_saved(net, folder)
    return net


def load_body(folder: Path) -> nn.Module:
    """Returns the model of a folder with the head that its configuration names.

    Raises:
        UserError: the folder has no weights that Transformers reads; packed ones have to be restored first.
    """
    if any(Path(folder).glob(PACKED)):
        raise UserError(
            f"{folder} holds packed weights: restore them with `python -m src.models.packed {folder} NEW_FOLDER`"
            " and give NEW_FOLDER"
        )
    try:
        net = auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"model {folder}: {first_line(error)}") from error
    attach_saved(net, folder)
    return net


def auto_class(config: PreTrainedConfig) -> Any:
    """Returns the Auto class of the head that a configuration names, AutoModel where it names none of HEADS."""
    wanted = (config.architectures or [""])[0]
    known = (head for head in HEADS.values() if wanted in {cls.__name__ for cls in head._model_mapping.values()})
    return next(known, transformers.AutoModel)


def silence_library_logging() -> None:
    """Silences what transformers says on every load."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
