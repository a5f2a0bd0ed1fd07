"""Loading and saving models by hub name, local folder, offline package or configuration: the door for all of them.

The hub comes first (its local cache counts as the hub), then a local source, then one clear error. `models.reading`
reads, `models.matching` holds what was read against the task.
"""

import copy
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from keepfrac.errors import UserError
from keepfrac.models import pruned
from keepfrac.models.activation import use_activation
from keepfrac.models.agreement import new_weights, refuse_decoder
from keepfrac.models.configuration import configuration
from keepfrac.models.families import FAMILIES
from keepfrac.models.gguf import unpacked
from keepfrac.models.locate import locate, note
from keepfrac.models.matching import class_names, match_classes, match_tokens, output_linear, renew_head
from keepfrac.models.reading import check_attention, read_config, read_tokenizer, read_weights
from keepfrac.models.vocabulary.tokenizers import built
from keepfrac.prune.masks import Masks
from keepfrac.storage import results
from keepfrac.storage.files import replacing
from keepfrac.storage.redact import first_line

log = logging.getLogger(__name__)

pruned.register_classes()  # from here on the Auto classes know cut models
HEADS = {
    "sequence_classification": transformers.AutoModelForSequenceClassification,
    "token_classification": transformers.AutoModelForTokenClassification,
    "question_answering": transformers.AutoModelForQuestionAnswering,
    "embedding": transformers.AutoModel,
    "masked_lm": transformers.AutoModelForMaskedLM,
    "causal_lm": transformers.AutoModelForCausalLM,
}
CLASSIFIERS = ("sequence_classification", "token_classification")
"""Heads whose outputs are the classes of a task."""
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
    if settings["tokenizer"]:
        source = unpacked(locate(settings["tokenizer"], settings["package"], "model.tokenizer"))
        return read_tokenizer(source, f"model.tokenizer={settings['tokenizer']}")
    source = model_source(settings)
    return read_tokenizer(source, f"model {source}")


def load_for_task(settings: dict, task, tokenizer: PreTrainedTokenizerBase, learns: bool = True) -> PreTrainedModel:
    """Returns the model with a task's head, fp32, matched with the task and the tokenizer.

    Args:
        settings: the `model` group of the configuration.
        task: what is learnt.
        tokenizer: of the model; it may be given a token to pad with.
        learns: whether the model will be trained.

    Raises:
        UserError: see `load_net`; or the tokenizer or the task's longest row does not fit the model.
    """
    net = load_net(settings, task.head, task.labels, task.num_labels, len(tokenizer), learns)
    match_tokens(net, tokenizer, task.settings.max_length, f"model {settings['run'] or settings['name']}")
    net.config.problem_type = task.problem_type
    return net


def load_net(
    settings: dict, head: str, labels: tuple[str, ...] | None, num_labels: int, vocab_size: int, learns: bool = True
) -> PreTrainedModel:
    """Returns the model with the head of a task, in fp32; a trained head has the task's order of classes.

    Args:
        settings: the `model` group of the configuration.
        head: a key of HEADS.
        labels: names of the classes; None for a regression.
        num_labels: width of the head.
        vocab_size: length of the tokenizer, for a model built from its configuration.
        learns: whether it will be trained; else weights that are loaded must have their head already.

    Raises:
        UserError: the folder is not a model's, weights other than the head's and the pooler's are missing (or any,
            where none will be trained), or a trained head has other classes.
    """
    silence_library_logging()
    net = _net(settings, head, labels, num_labels, vocab_size, learns)
    if settings["hidden_act"]:
        use_activation(net, settings["hidden_act"])
    return net


def _net(
    settings: dict, head: str, labels: tuple[str, ...] | None, num_labels: int, vocab_size: int, learns: bool
) -> PreTrainedModel:
    if settings["head"] and (settings["config"] or head not in CLASSIFIERS):
        raise UserError(f"model.head={settings['head']}: without effect, for no classifier is loaded: leave it null")
    if not settings["config"]:
        return _loaded(settings, head, labels, num_labels, learns)
    # random weights were asked for: they may be looked at without training
    config = configuration({"vocab_size": vocab_size, **settings["config"]})
    config = _configured(config, settings, labels, num_labels)
    check_attention(HEADS[head], config, settings["attention"], f"model {settings['name']}")
    how = {"attn_implementation": settings["attention"], "dtype": torch.float32}
    try:
        return HEADS[head].from_config(config, trust_remote_code=False, **how)
    except (AssertionError, ValueError) as error:  # such as a padding token that the vocabulary has not
        raise UserError(f"model.config: {first_line(error)}") from error


def _loaded(
    settings: dict, head: str, labels: tuple[str, ...] | None, num_labels: int, learns: bool
) -> PreTrainedModel:
    source = model_source(settings)
    who = f"model {source}"
    found = read_config(source, who)
    net, info = read_weights(
        HEADS[head],
        source,
        who,
        _configured(found, settings, labels, num_labels),
        attn_implementation=settings["attention"],
        dtype=torch.float32,  # else the checkpoint's own, which may be fp16
        ignore_mismatched_sizes=True,
    )
    new = _new_weights(source, net, info)
    if settings["head"]:
        new += renew_head(net, num_labels, who)
    if new and not learns:
        raise UserError(_untrained(settings, new))
    if labels and f"{output_linear(net, num_labels)}.weight" not in new:
        match_classes(net, class_names(found), labels, who, ", or train a new head: model.head=new")
    return net


def _untrained(settings: dict, new: Sequence[str]) -> str:
    if not settings["run"]:
        return (
            f"epochs=0 with model.name={settings['name']}: it has no trained head for this task ({', '.join(new)}), and"
            " a new one would learn nothing: train with epochs >= 1, or give a model that was fine-tuned for it"
        )
    found = results.read(Path(settings["run"])) or {}
    task = ((found.get("config") or {}).get("task") or {}).get("name", "another task")
    return (
        f"epochs=0 with model.run={settings['run']}: its model, of task={task}, has no head that fits this task"
        f" ({', '.join(new)}), and a new one would learn nothing: type task={task}, or train with epochs >= 1"
    )


def load_masked_lm(source: str) -> tuple[PreTrainedModel, bool]:
    """Returns the masked language model of a folder, fp32, in eval mode, and whether the folder holds its head.

    Raises:
        UserError: it is not a model's, or weights other than the head's and the pooler's are missing.
    """
    silence_library_logging()
    who = f"model {source}"
    net, info = read_weights(HEADS["masked_lm"], source, who, read_config(source, who), dtype=torch.float32)
    _new_weights(source, net, info)
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
    refuse_decoder(config)
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


def _new_weights(source: str, net: PreTrainedModel, info: dict) -> list[str]:
    if new := new_weights(source, net.config, info):
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


def reload(folder: Path, head: str, attention: str) -> PreTrainedModel:
    """Returns the delivered model, exactly as a user would load it."""
    who = f"model {folder}"
    net, info = read_weights(HEADS[head], folder, who, read_config(folder, who), attn_implementation=attention)
    assert not info["missing_keys"] and not info["mismatched_keys"], info
    return net


def load_body(folder: Path) -> PreTrainedModel:
    """Returns the model of a folder with the head that its configuration names.

    Raises:
        UserError: the folder has no weights that Transformers reads, or lacks some that no task brings; packed ones
            have to be restored first.
    """
    if any(Path(folder).glob(PACKED)):
        raise UserError(
            f"{folder} holds packed weights: restore them with `python -m src.models.packed {folder} NEW_FOLDER`"
            " and give NEW_FOLDER"
        )
    who = f"model {folder}"
    config = read_config(folder, who)
    net, info = read_weights(auto_class(config), folder, who, config)
    _new_weights(str(folder), net, info)
    return net


def auto_class(config: PreTrainedConfig) -> Any:
    """Returns the Auto class of the head that a configuration names, AutoModel where it names none of HEADS."""
    return known_class(config) or transformers.AutoModel


def known_class(config: PreTrainedConfig) -> Any | None:
    """Returns the one of HEADS whose model of this family a configuration names; None: none of them."""
    wanted = (config.architectures or [""])[0]
    for auto in HEADS.values():
        found = auto._model_mapping.get(type(config), ())
        if wanted in {cls.__name__ for cls in (found if isinstance(found, tuple | list) else (found,))}:
            return auto
    return None


def silence_library_logging() -> None:
    """Silences what transformers says on every load."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
