"""MlmTask: masked language modelling on the training texts of another task, or on the lines of a text file.

What is masked in a training row is drawn anew in each epoch, from the seed, the epoch and the row's number alone: a run
that goes on draws what it would have drawn, whatever the number of workers. Validation and test are masked once, the
same for every seed, so that perplexities of two runs compare.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from keepfrac.errors import UserError
from keepfrac.storage.build import build
from keepfrac.tasks.base import Batch, Task, token_sums
from keepfrac.tasks.data.files import read_text, split_lines
from keepfrac.tasks.masking import IGNORED, Masking, masking_of
from keepfrac.tasks.rows import TEXTS, Rows, Splits, cut, places, subset
from keepfrac.tasks.text import TextTask
from keepfrac.tasks.tokens import Tokens, cached_tokens

HELD_OUT, MOST_HELD_OUT = 0.1, 10_000
Draw = Callable[[], tuple[int, ...]]


@dataclass(frozen=True)
class MaskedTokens:
    """Rows that are masked when they are taken.

    Args:
        tokens: of all rows.
        masking: chooses.
        draw: gives the numbers that, with a row's own, seed its choice.
    """

    tokens: Tokens
    masking: Masking
    draw: Draw

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, (rows,)."""
        return self.tokens.lengths

    @property
    def truncated(self) -> int:
        """How many rows were cut."""
        return self.tokens.truncated

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        ids, types = self.tokens.row(index)
        seen, labels = self.masking(np.asarray(ids), np.random.default_rng([*self.draw(), index]))
        return seen, types, labels


class MlmTask(TextTask):
    """What stands behind the masks?

    Of a task (`task@task.of=gaiic`): its training texts, each of a pair by itself; its validation texts, halved by a
    hash, are validation and test, and its test set has no part in it. Of a file: its lines; a tenth by a hash is held
    out and halved in the same way.

    Args:
        name: the task's name in results.
        of: settings of the task whose texts are taken; None: `text_file`.
        text_file: a file with one text per line, UTF-8, empty lines left out; None: `of`.
        mask_frac: share of the tokens that is to be guessed, in (0, 1).
        whole_words: whether a word that the tokenizer cuts into pieces is masked whole.
        span: most consecutive words that are masked as one, >= 1.
        rows: how many training rows to take; None: all.
        max_length: most tokens of a row, special tokens included.
        metrics: names of the metrics; None: perplexity and masked_accuracy.
        best_metric: the metric, or "loss", that chooses the best checkpoint; None: the first metric.
        batch_size: rows of one process in a training batch.
        eval_batch_size: most rows of one process in an evaluation batch.
        seed: of the order of training batches and of the masks.
        num_workers: processes that prepare batches.
    """

    head = "masked_lm"
    problems = ("masked_lm",)

    def __init__(
        self,
        *,
        name: str,
        of: Mapping | None,
        text_file: str | None,
        mask_frac: float,
        whole_words: bool,
        span: int,
        rows: int | None,
        max_length: int,
        metrics: Sequence[str] | None,
        best_metric: str | None,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        num_workers: int,
    ):
        super().__init__(
            name=name,
            problem="masked_lm",
            rows=rows,
            max_length=max_length,
            metrics=metrics,
            best_metric=best_metric,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            num_workers=num_workers,
        )
        if isinstance(of, str):
            raise UserError(f"task.of={of}: type task@task.of={of}, which takes all settings of that task")
        if not 0 < mask_frac < 1:
            raise UserError(f"task.mask_frac={mask_frac}: must be a number in (0, 1)")
        if isinstance(span, bool) or not isinstance(span, int) or span < 1:
            raise UserError(f"task.span={span}: must be a whole number >= 1")
        self.of, self.text_file = of, text_file
        self.mask_frac, self.whole_words, self.span = mask_frac, whole_words, span

    # rows -----------------------------------------------------------------------------------------------------------

    def read(self) -> Splits:
        """Takes the texts of the task, or of the file."""
        if bool(self.of) == bool(self.text_file):
            raise UserError(
                f"task {self.name}: type either task@task.of=<a task, such as gaiic> or task.text_file=<a file>"
            )
        train, held_out, source, how, notes = self._of_task() if self.of else self._of_file()
        half = cut(places([f"half {text}" for text in held_out]), 0.5)
        validation, test = (_rows(np.array(held_out, dtype=object)[mask].tolist()) for mask in (~half, half))
        how += ", halved by another hash, is validation and test"
        return Splits(subset(_rows(train), self.rows, "text"), validation, test, source, how, None, notes=notes)

    def _of_task(self) -> tuple[list[str], list[str], str, str, dict]:
        task: Task = build(dict(self.of or {}))
        of = task.splits
        how = f"train is that of {task.name} ({of.how}); its validation"
        return _texts(of.train), _texts(of.validation), of.source, how, {"of": task.name}

    def _of_file(self) -> tuple[list[str], list[str], str, str, dict]:
        path = Path(str(self.text_file)).expanduser()
        lines = split_lines(read_text(path))
        texts = np.array([line for line in lines if line.strip()], dtype=object)
        mask = cut(places(texts.tolist()), HELD_OUT, MOST_HELD_OUT)
        how = f"10 % of the lines ({MOST_HELD_OUT:,} at most) by a hash"
        notes = {"empty_lines": len(lines) - len(texts)}
        return texts[~mask].tolist(), texts[mask].tolist(), f"file {path}", how, notes

    # tokens ---------------------------------------------------------------------------------------------------------

    def use(self, tokenizer) -> None:
        super().use(tokenizer)
        self._masking = masking_of(tokenizer, self.mask_frac, self.span, self.whole_words)

    def encoded(self, split: str) -> MaskedTokens:
        """Returns rows that are masked anew in each epoch of training, and always alike elsewhere."""
        if split not in self._encoded:
            assert self.tokenizer is not None, "use(tokenizer) comes first"
            rows = self.splits.named()[split]
            tokens = cached_tokens(self.tokenizer, self._digest, rows, self.max_length)
            draw = self._draw if split == "train" else _always
            self._encoded[split] = MaskedTokens(tokens, self._masking, draw)
        found = self._encoded[split]
        assert isinstance(found, MaskedTokens)
        return found

    def _draw(self) -> tuple[int, ...]:
        return self.seed, 0 if self._batches is None else self._batches.epoch

    def collate(self, items: list) -> Batch:
        """Pads rows to the longest of them; labels are -100 where nothing is to be guessed, (batch, longest)."""
        batch = self.padded([(seen, types) for seen, types, _ in items])
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

    def predict(self, outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns logits (masked tokens, vocabulary) and true tokens (masked tokens,)."""
        masked = batch["labels"] != IGNORED
        return outputs.logits[masked].float(), batch["labels"][masked]

    def watched(self, loss: Tensor) -> dict[str, Tensor]:
        return {"train/perplexity": loss.exp()}


def _always() -> tuple[int, ...]:
    return (0,)


def _texts(rows: Rows) -> list[str]:
    """Returns the texts of a task, each of a pair by itself; of meanings each once, and all that is said of them."""
    said = [*rows.columns.get("reference", ())]
    said += [text for several in rows.columns.get("references", ()) for text in several]
    texts = [text for column in TEXTS if column in rows for text in rows[column]]
    return [*dict.fromkeys(texts), *said] if said else texts


def _rows(texts: list[str]) -> Rows:
    return Rows({"text": texts})
