"""A teacher: a fine-tuned model that must fit the task and the student's tokens, or is refused before training."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from keepfrac.adapters.files import attach_saved
from keepfrac.errors import UserError
from keepfrac.models.load import HEADS, silence_library_logging
from keepfrac.models.locate import locate_teacher
from keepfrac.storage.redact import first_line

SAMPLE = "A teacher's words, it's said: don't (ever) re-tokenise 3.14 naïve sub-words!"


def load_teacher(
    name: str,
    head: str,
    labels: Sequence[str] | None,
    num_labels: int,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
) -> PreTrainedModel:
    """Returns the teacher in fp32, in eval mode and without gradients.

    Args:
        name: a run's folder, a local Hugging Face folder or a hub name.
        head: key of `load.HEADS`.
        labels: names of the task's classes in order; None: a regression.
        num_labels: width of the task's head.
        tokenizer: the student's.
        max_length: most tokens of a row; None: not known.

    Raises:
        UserError: it cannot be read, has no head for the task, other labels or another order, or other tokens.
    """
    silence_library_logging()
    source = locate_teacher(name)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(f"distill.teacher={name}: {first_line(error)}") from error
    _check_labels(name, config, labels, num_labels)
    _check_tokens(name, source, config, tokenizer, max_length)
    return _load(name, source, head).eval().requires_grad_(False)


def _load(name: str, source: str, head: str) -> PreTrainedModel:
    """A pickled checkpoint is read as weights alone (torch's `weights_only`), or not at all."""
    try:
        net, info = HEADS[head].from_pretrained(
            source, attn_implementation="sdpa", dtype="float32", weights_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"distill.teacher={name}: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"distill.teacher={name} lacks {', '.join(missing[:3])}: it was not fine-tuned with a head for this task;"
            " fine-tune it first (method=nosp) and give that run's folder"
        )
    attach_saved(net, Path(source))
    return net


def _check_labels(name: str, config, labels: Sequence[str] | None, num_labels: int) -> None:
    if config.num_labels != num_labels:
        raise UserError(
            f"distill.teacher={name} has {config.num_labels} labels, the task {num_labels}: give a teacher of this task"
        )
    own = [str(config.id2label[index]).casefold() for index in range(num_labels)] if labels else []
    asked = [str(label).casefold() for label in labels or ()]
    if sorted(own) == sorted(asked) and own != asked:
        raise UserError(
            f"distill.teacher={name} has its labels in the order {', '.join(own)}, the task {', '.join(asked)}"
        )


def _check_tokens(name: str, source: str, config, tokenizer, max_length: int | None) -> None:
    try:
        own = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"distill.teacher={name} has no tokenizer, and must read the student's tokens: save it beside the weights"
        ) from error
    same = own.get_vocab() == tokenizer.get_vocab() and own(SAMPLE)["input_ids"] == tokenizer(SAMPLE)["input_ids"]
    if not same or config.vocab_size < len(tokenizer):
        raise UserError(
            f"distill.teacher={name} has another tokenizer than the student ({len(own)} and {len(tokenizer)} tokens):"
            " a teacher must read the same tokens"
        )
    room = getattr(config, "max_position_embeddings", None)
    if max_length and room and max_length > room:
        raise UserError(f"task.max_length={max_length}: distill.teacher={name} takes at most {room} tokens")
