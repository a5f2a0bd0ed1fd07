"""A loaded model held against its tokenizer and its task: classes, the token it pads with, positions, embeddings.

What can be set right is set right in place, to what the model was trained with; what cannot is refused in one line.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from keepfrac.errors import UserError
from keepfrac.models.anatomy import base_path

log = logging.getLogger(__name__)


# classes --------------------------------------------------------------------------------------------------------------


def class_names(config: PreTrainedConfig) -> list[str]:
    """Returns the names of a configuration's classes in the order of their numbers."""
    return [str(name) for _, name in sorted((config.id2label or {}).items())]


def class_order(own: Sequence[str], labels: Sequence[str]) -> list[int] | None:
    """Returns for each label the number of a model's class of that name, or None where the names do not fit.

    Capitals do not count. Names that say a place and nothing else, LABEL_0 or 0 first, stand for their place.

    Args:
        own: names of the model's classes, in the order of their numbers.
        labels: names of the task's.
    """
    places = list(range(len(labels)))
    for spelt in (str, str.casefold):
        there, asked = [spelt(str(name)) for name in own], [spelt(str(label)) for label in labels]
        if len(set(asked)) == len(asked) and sorted(there) == sorted(asked):
            return [there.index(label) for label in asked]
    return places if len(own) == len(labels) and (_say_places(own) or _say_places(labels)) else None


def _say_places(names: Sequence[str]) -> bool:
    return all(str(name).casefold() in (f"label_{place}", str(place)) for place, name in enumerate(names))


@torch.no_grad()
def match_classes(net: PreTrainedModel, own: Sequence[str], labels: Sequence[str], who: str, way_out: str = "") -> None:
    """Brings a trained head's rows into the order of a task's labels, by name, in place.

    Args:
        net: the model, with its weights.
        own: names of its classes, as its folder has them (`class_names`).
        labels: names of the task's classes.
        who: the model, for the message.
        way_out: what else can be done, for the message.

    Raises:
        UserError: the names are not the task's, or the head's last linear is not to be found.
    """
    order = class_order(own, labels)
    if order is None:
        raise UserError(
            f"{who} has the classes {', '.join(own)}, the task {', '.join(map(str, labels))}: name them alike (id2label"
            f" in its config.json; LABEL_0, LABEL_1 ... go by their place){way_out}"
        )
    if order == list(range(len(labels))):
        return
    head = output_linear(net, len(labels))
    if head is None:
        raise UserError(
            f"{who} has its classes in the order {', '.join(own)}, and its head cannot be brought into the task's:"
            f" {', '.join(map(str, labels))}"
        )
    for tensor in net.get_submodule(head).parameters(recurse=False):
        tensor.copy_(tensor[order])
    log.info("%s: its classes %s are brought into the task's order: %s", who, ", ".join(own), ", ".join(labels))


@torch.no_grad()
def renew_head(net: PreTrainedModel, num_labels: int, who: str) -> list[str]:
    """Gives a classifier a new last linear, in place; returns the names of its parameters.

    Raises:
        UserError: it is not to be found.
    """
    path = output_linear(net, num_labels)
    if path is None:
        raise UserError(f"model.head=new: {who} has no linear of its own that gives the classes")
    head = net.get_submodule(path)
    head.get_parameter("weight").normal_(std=getattr(net.config, "initializer_range", 0.02))
    if head.bias is not None:
        head.get_parameter("bias").zero_()
    return [f"{path}.{name}" for name, _ in head.named_parameters()]


def output_linear(net: nn.Module, num_labels: int) -> str | None:
    """Returns the path of the linear that gives a classifier's logits: the head's last of that width; None: none."""
    base = base_path(net)
    outside = [
        name
        for name, module in net.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_labels and not name.startswith(f"{base}.")
    ]
    return outside[-1] if outside else None


# tokens ---------------------------------------------------------------------------------------------------------------


def match_tokens(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None, who: str) -> None:
    """Holds a model against its tokenizer: embeddings, positions, and the token that it pads with, in place.

    Args:
        net: the model.
        tokenizer: its tokenizer.
        max_length: most tokens of a row; None: not known.
        who: the model, for the message.

    Raises:
        UserError: a token has no embedding, a row may be longer than there are positions, or a classifier that reads
            its last token has none to pad with.
    """
    check_embeddings(net, tokenizer, who)
    most = most_tokens(net)
    if max_length and most and max_length > most:
        raise UserError(f"task.max_length={max_length}: {who} takes at most {most} tokens: type task.max_length={most}")
    if reads_pad(net):
        match_pad(net.config.get_text_config(), tokenizer, who)


def check_embeddings(net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, who: str) -> None:
    """Refuses a tokenizer with a token that has no embedding.

    Raises:
        UserError: gives both numbers.
    """
    rows = getattr(net.get_input_embeddings(), "num_embeddings", None)
    tokens = max(tokenizer.get_vocab().values(), default=-1) + 1
    if rows is not None and tokens > rows:
        raise UserError(
            f"{who} has {rows} embeddings, its tokenizer {tokens} tokens: give the tokenizer that belongs to it, or"
            " enlarge the embeddings (resize_token_embeddings)"
        )


def most_tokens(net: PreTrainedModel) -> int | None:
    """Returns the longest row that a model has positions for; None: any.

    A RoBERTa counts positions from the padding token's id on: of 514 it has 512.
    """
    room = getattr(net.config, "max_position_embeddings", None)
    offset = position_offset(net)
    return None if not isinstance(room, int) or room <= 0 else room if offset is None else room - offset - 1


def position_offset(net: nn.Module) -> int | None:
    """Returns the id of the padding token where positions are counted from it on, as RoBERTa's; else None."""
    for module in net.modules():
        found = getattr(module, "padding_idx", None)
        if found is not None and hasattr(module, "position_embeddings"):
            return found
    return None


def reads_pad(net: PreTrainedModel) -> bool:
    """Returns whether a model looks for a row's last token that is not padding, as classifiers on decoders do.

    The code of its class says so, whatever its family: the configuration's `pad_token_id` is read in no other forward.
    """
    return "pad_token_id" in inspect.unwrap(type(net).forward).__code__.co_names


def match_pad(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, who: str) -> None:
    """Gives a model and its tokenizer one token to pad with: the model's, else the tokenizer's, else a spare one.

    The model's comes first because that is what its last token was told from when it was trained. A spare one is a
    special token that the tokenizer does not end texts with: the last token of a text must not be taken for padding.

    Raises:
        UserError: there is none.
    """
    own = _token_of(tokenizer, config.pad_token_id)
    if own is None and tokenizer.pad_token_id is None:
        own = _spare_token(tokenizer)
        if own is None:
            raise UserError(
                f"{who}: it reads a row's last token, and neither config.json (pad_token_id) nor its tokenizer"
                " (pad_token) names a token to pad with: name one in both"
            )
    if own is not None and own != tokenizer.pad_token:
        tokenizer.pad_token = own
    if config.pad_token_id != tokenizer.pad_token_id:
        log.info("%s: rows are padded with %s", who, tokenizer.pad_token)
        config.pad_token_id = tokenizer.pad_token_id


def _token_of(tokenizer: PreTrainedTokenizerBase, index: int | None) -> str | None:
    known = index is not None and 0 <= index < len(tokenizer)
    return tokenizer.convert_ids_to_tokens(index) if known else None


def _spare_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    last = tokenizer("a")["input_ids"][-1]
    names = ("eos_token", "unk_token", "bos_token", "sep_token", "mask_token")
    found = (token for name in names if (token := getattr(tokenizer, name, None)) is not None)
    return next((token for token in found if tokenizer.convert_tokens_to_ids(token) != last), None)
