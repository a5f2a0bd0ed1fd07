"""MlmTask: masked language modelling on the training texts of another task, or on the lines of a text file.

What is masked in a training row is drawn anew in each epoch, from the seed, the epoch and the row's number alone: a run
that goes on draws what it would have drawn, whatever the number of workers. Validation and test are masked once, the
same for every seed, so that perplexities of two runs compare.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from keepfrac.errors import UserError
from keepfrac.settings import Kind, count, flag, setting, settings, share, text
from keepfrac.storage.build import build, check_settings
from keepfrac.tasks.base import Batch, Task, token_sums
from keepfrac.tasks.data.files import read_text, split_lines
from keepfrac.tasks.masking import IGNORED, Masking, masking_of
from keepfrac.tasks.rows import TEXTS, Rows, Splits, hash_buckets, held_out_mask, subset
from keepfrac.tasks.text import TextTask
from keepfrac.tasks.tokens import TokenRows

HELD_OUT, MOST_HELD_OUT = 0.1, 10_000
Draw = Callable[[], tuple[int, ...]]
# a name alone gets a hint of its own
OF = Kind(lambda value: value is None or isinstance(value, Mapping | str), "settings of a task, by task@task.of=")


@dataclass(frozen=True)
class MaskedTokens(TokenRows):
    """Rows that are masked when they are taken.

    Args:
        masking: chooses.
        draw: gives the numbers that, with a row's own, seed its choice.
    """

    masking: Masking
    draw: Draw

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        ids, types = self.tokens.row(index)
        inputs, labels = self.masking(np.asarray(ids), np.random.default_rng([*self.draw(), index]))
        return inputs, types, labels


class MlmTask(TextTask):
    """What stands behind the masks?

    Of a task (`task@task.of=gaiic`): its training texts, each of a pair by itself; its validation texts, halved by a
    hash, are validation and test, and its test set has no part in it. Of a file: its lines; a tenth by a hash is held
    out and halved in the same way.
    """

    @settings
    class Settings(TextTask.Settings):
        """The texts, and how they are masked."""

        # a key with the name of a class method, which the class keeps
        of: Mapping | None = setting("settings of the task whose texts are taken; null: `text_file`", OF)  # type: ignore[assignment]
        text_file: str | None = text(
            "a file with one text per line, UTF-8, empty lines left out; null: `of`", null=True
        )
        mask_frac: float = share("share of the tokens that is to be guessed", "()")
        whole_words: bool = flag("whether a word that the tokenizer cuts into pieces is masked whole")
        span: int = count("most consecutive words that are masked as one")

        def check(self) -> None:
            if isinstance(self.of, str):
                raise self.error("of", f"type task@task.of={self.of}, which takes all settings of that task")
            if self.of:
                check_settings("task", self.of)

    settings: Settings
    head = "masked_lm"
    problem = "masked_lm"

    # rows -----------------------------------------------------------------------------------------------------------

    def read(self) -> Splits:
        """Takes the texts of the task, or of the file."""
        of, text_file = self.settings.of, self.settings.text_file
        if bool(of) == bool(text_file):
            raise UserError(
                f"task {self.name}: type either task@task.of=<a task, such as gaiic> or task.text_file=<a file>"
            )
        train, held_out, source, how, notes = _of_task(of) if of else _of_file(str(text_file))
        half = held_out_mask(hash_buckets([f"half {text}" for text in held_out]), 0.5)
        validation, test = (_rows(np.array(held_out, dtype=object)[mask].tolist()) for mask in (~half, half))
        how += ", halved by another hash, is validation and test"
        return Splits(
            train=subset(_rows(train), self.settings.rows, "text"),
            validation=validation,
            test=test,
            source=source,
            how=how,
            labels=None,
            notes=notes,
        )

    # tokens ---------------------------------------------------------------------------------------------------------

    def use(self, tokenizer) -> None:
        super().use(tokenizer)
        own = self.settings
        self._masking = masking_of(tokenizer, own.mask_frac, own.span, own.whole_words)

    def encoded(self, split: str) -> MaskedTokens:
        """Returns rows that are masked anew in each epoch of training, and always alike elsewhere."""
        if split not in self._encoded:
            draw = self._draw if split == "train" else _always
            self._encoded[split] = MaskedTokens(self.tokens(self.splits.named()[split]), self._masking, draw)
        found = self._encoded[split]
        assert isinstance(found, MaskedTokens)
        return found

    def _draw(self) -> tuple[int, ...]:
        return self.settings.seed, 0 if self._batches is None else self._batches.epoch

    def collate(self, items: list) -> Batch:
        """Pads rows to the longest of them; labels are -100 where nothing is to be guessed, (batch, longest)."""
        batch = self.padded([(inputs, types) for inputs, types, _ in items])
        labels = torch.full(batch["input_ids"].shape, IGNORED)
        for row, (_, _, hidden) in enumerate(items):
            labels[row, : len(hidden)] = torch.from_numpy(hidden)
        return {**batch, "labels": labels}

    # loss -----------------------------------------------------------------------------------------------------------

    def loss(self, outputs, batch: Batch) -> Tensor:
        """Returns the mean cross entropy of the masked tokens; 0 where there is none."""
        logits, targets = self.predict(outputs, batch)
        return cross_entropy(logits, targets, reduction="sum") / max(1, len(targets))

    def row_losses(self, outputs, batch: Batch) -> Tensor:
        """Returns the sum of the cross entropies of each row's masked tokens, (rows,); 0 where there is none."""
        logits, targets = self.predict(outputs, batch)
        masked = batch["labels"] != IGNORED
        return token_sums(cross_entropy(logits, targets, reduction="none"), masked)

    def num_loss_terms(self, batch: Batch) -> int:
        """Returns how many masked tokens the loss of a batch is a mean over."""
        return int((batch["labels"] != IGNORED).sum())

    def predict(self, outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns logits (masked tokens, vocabulary) and true tokens (masked tokens,)."""
        masked = batch["labels"] != IGNORED
        return outputs.logits[masked].float(), batch["labels"][masked]

    def metrics_to_log(self, loss: Tensor) -> dict[str, Tensor]:
        return {"train/perplexity": loss.exp()}


def _always() -> tuple[int, ...]:
    return (0,)


def _of_task(settings: Mapping) -> tuple[list[str], list[str], str, str, dict]:
    """Returns training texts, held-out texts, source, how they were divided, and notes, of a task."""
    task: Task = build(dict(settings))
    of = task.splits
    how = f"train is that of {task.name} ({of.how}); its validation"
    return _texts(of.train), _texts(of.validation), of.source, how, {"of": task.name}


def _of_file(name: str) -> tuple[list[str], list[str], str, str, dict]:
    """Returns the same of a file."""
    path = Path(name).expanduser()
    lines = split_lines(read_text(path))
    texts = np.array([line for line in lines if line.strip()], dtype=object)
    mask = held_out_mask(hash_buckets(texts.tolist()), HELD_OUT, MOST_HELD_OUT)
    how = f"10 % of the lines ({MOST_HELD_OUT:,} at most) by a hash"
    notes = {"empty_lines": len(lines) - len(texts)}
    return texts[~mask].tolist(), texts[mask].tolist(), f"file {path}", how, notes


def _texts(rows: Rows) -> list[str]:
    """Returns the texts of a task, each of a pair by itself; each MR once, and all its references."""
    references = [*rows.columns.get("reference", ())]
    references += [text for several in rows.columns.get("references", ()) for text in several]
    texts = [text for column in TEXTS if column in rows for text in rows[column]]
    return [*dict.fromkeys(texts), *references] if references else texts


def _rows(texts: list[str]) -> Rows:
    return Rows({"text": texts})
