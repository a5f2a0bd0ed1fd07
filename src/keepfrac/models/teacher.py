"""A teacher: a fine-tuned model that must fit the task and the student's tokens, or is refused before training."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from keepfrac.errors import UserError
from keepfrac.models.load import HEADS, silence_library_logging
from keepfrac.models.locate import locate_teacher
from keepfrac.models.matching import class_names, match_classes, match_tokens, reads_pad
from keepfrac.models.reading import has_sdpa, read_config, read_tokenizer, read_weights

SAMPLE = "A teacher's words, it's said: don't (ever) re-tokenise 3.14 naïve sub-words!"


def load_teacher(
    name: str,
    head: str,
    labels: Sequence[str] | None,
    num_labels: int,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> PreTrainedModel:
    """Returns the teacher in fp32, in eval mode and without gradients; its classes are in the task's order.

    Args:
        name: a run's folder, a local Hugging Face folder or a hub name.
        head: key of `load.HEADS`.
        labels: names of the task's classes in order; None: a regression.
        num_labels: width of the task's head.
        tokenizer: the student's.
        max_length: most tokens of a row; None: not known.

    Raises:
        UserError: it cannot be read, has no head for the task, other classes or other tokens.
    """
    silence_library_logging()
    source, who = locate_teacher(name), f"distill.teacher={name}"
    config = read_config(source, who)
    if config.num_labels != num_labels:
        raise UserError(f"{who} has {config.num_labels} labels, the task {num_labels}: give a teacher of this task")
    names = class_names(config)
    net = _load(source, head, config, who)
    if labels:
        match_classes(net, names, labels, who)
    _check_tokens(source, net, tokenizer, max_length, who)
    return net.eval().requires_grad_(False)


def _load(source: str, head: str, config: PreTrainedConfig, who: str) -> PreTrainedModel:
    """How its attention is computed is no setting: nothing of it is asked but outputs and scores."""
    attention = "sdpa" if has_sdpa(HEADS[head], config) else "eager"
    net, info = read_weights(HEADS[head], source, who, config, attn_implementation=attention, dtype="float32")
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"{who} lacks {', '.join(missing[:3])}: it was not fine-tuned with a head for this task;"
            " fine-tune it first (method=nosp) and give that run's folder"
        )
    return net


def _check_tokens(
    source: str, net: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int | None, who: str
) -> None:
    own = read_tokenizer(source, who, "a teacher must read the student's tokens: save its tokenizer beside the weights")
    same = own.get_vocab() == tokenizer.get_vocab() and own(SAMPLE)["input_ids"] == tokenizer(SAMPLE)["input_ids"]
    if not same:
        raise UserError(
            f"{who} has another tokenizer than the student ({len(own)} and {len(tokenizer)} tokens):"
            " a teacher must read the same tokens"
        )
    match_tokens(net, own, max_length, who)
    if reads_pad(net) and own.pad_token_id != tokenizer.pad_token_id:
        raise UserError(
            f"{who} is padded with {own.pad_token}, the student with {tokenizer.pad_token}: name one token in both"
            " (pad_token_id in config.json)"
        )
