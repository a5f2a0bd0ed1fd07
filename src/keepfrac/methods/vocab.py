"""Vocabulary pruning: the tokens stay that occur in the training texts; tokenizer and embeddings lose the others.

Before training (with epochs=0 before scoring) the training texts are counted as the task feeds them, tokens of at least
`min_count` occurrences stay with what a tokenizer needs (`models.vocabulary.pruning`), and tokenizer, word embeddings
and a decoder, tied to them or not, get new ids. With min_count 1 every training text is tokenized as before, which is
checked on all of them, so the model's outputs are the same: a classifier's bit for bit, a language model's for the
tokens that stay (the others lose their share of the probability and are never generated). A word of another text may be
divided into smaller pieces, or be unknown. The delivered tokenizer is the pruned one.

keep_frac is not asked for: min_count decides. `asked` is the share of the embeddings' rows that it names, `achieved`
the share that stays, special tokens and the rest included; both of the original vocabulary, whatever cut it before.
`logits_moved_by`, with min_count 1, is how far the logits of some training texts moved at most.

Source: TextPruner (Yang et al. 2022), section 3.1. Departures: fast tokenizers of any kind, merges included; all
training texts are divided again and compared.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from keepfrac.errors import UserError
from keepfrac.models.vocabulary.pruning import (
    keep_rows,
    rebuilt,
    remap_ids,
    special_token_ids,
    state_of,
    tokens_to_keep,
)
from keepfrac.prune.masks import Masks
from keepfrac.settings import count, flag, settings
from keepfrac.tasks.tokens import Tokens
from keepfrac.training.finetune import Batch, FineTune

COMPARED = 32  # training texts whose logits are
COMPARED_TOKENS = 8  # of each, where there are logits of every token: a quarter of a million numbers each


class VocabPrune(FineTune):
    """Fine-tuning of a model that knows the tokens of its training texts alone, with a fast tokenizer."""

    @settings
    class Settings(FineTune.Settings):
        min_count: int = count("occurrences in the training texts from which on a token stays")
        characters: bool = flag("whether single characters of the kept tokens stay, which spell unseen words")

        def check(self) -> None:
            super().check()
            if self.keep_frac != 1:
                raise self.error("keep_frac", "must be 1; method.min_count says what stays")

    settings: Settings

    account: dict | None = None

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.account is None:
            self._prune()

    def finish(self, batches: Iterable[Batch]) -> None:
        self.prepare(batches)  # a run without training has not been prepared

    def kept(self) -> dict:
        return super().kept() if self.account is None else self.account

    def _prune(self) -> None:
        if self.distiller is not None:
            raise UserError(
                f"method={self.name} with distill.teacher: the teacher knows other tokens; prune before or after"
            )
        tokenizer, data = getattr(self.task, "tokenizer", None), self.task.encoded("train")
        if tokenizer is None or not hasattr(data, "tokens"):
            raise UserError(f"method={self.name} counts the tokens of texts, and task={self.task.name} has none")
        before, logits = data.tokens, self._logits(data.tokens) if self.settings.min_count == 1 else []
        used = np.flatnonzero(np.bincount(before.ids) >= self.settings.min_count)
        state = state_of(tokenizer)
        always = special_token_ids(tokenizer, self.net)
        smaller, old = remap_ids(state, tokens_to_keep(state, used.tolist(), always, self.settings.characters))
        embeddings = keep_rows(self.net, old)
        self._slice_masks(old)
        self.task.use(rebuilt(tokenizer, smaller))
        moved = self._compare(before, np.array(old), logits) if self.settings.min_count == 1 else {}
        original = embeddings["original_rows"]
        self.account = {
            "asked": round(len(used) / original, 4),
            "achieved": len(old) / original,
            "unit": "rows of the word embeddings",
            "of": f"{original} tokens",
            "tokens": len(old),
            "embedding_params": embeddings["after"],
            "embedding_params_before": embeddings["before"],
            **moved,
        }

    def _slice_masks(self, old: list[int]) -> None:
        if self.masks is None:
            return
        sizes = {name: len(parameter) for name, parameter in self.net.named_parameters(remove_duplicate=False)}
        rows = torch.tensor(old)
        self.masks = Masks(
            {name: m if len(m) == sizes[name] else m[rows.to(m.device)] for name, m in self.masks.items()}
        )

    def _compare(self, before: Tokens, old: np.ndarray, logits: list[Tensor]) -> dict[str, float]:
        """Holds the training texts, divided by the pruned tokenizer, against what they were; and their logits."""
        after = self.task.encoded("train").tokens  # type: ignore[attr-defined]
        same = np.array_equal(after.starts, before.starts) and np.array_equal(old[after.ids], before.ids)
        if not same:
            raise UserError(
                f"the pruned {type(self.task.tokenizer).__name__} divides the training texts in another way than the"
                " whole one: this vocabulary cannot be pruned"
            )
        ids = slice(None) if self.net.get_output_embeddings() is None else old  # type: ignore[operator]
        pairs = zip(logits, self._logits(after), strict=True)
        return {"logits_moved_by": max(float((now - had[..., ids]).abs().max()) for had, now in pairs)}

    @torch.no_grad()
    def _logits(self, tokens: Tokens) -> list[Tensor]:
        """Returns the logits of the first rows, each by itself, without dropout."""
        training, device = self.net.training, next(self.net.parameters()).device
        self.net.eval()
        found = []
        for row in range(min(COMPARED, len(tokens))):
            parts = zip(("input_ids", "token_type_ids"), tokens.row(row), strict=True)
            inputs = {name: torch.tensor(part[None].tolist()) for name, part in parts if part is not None}
            logits = self.net(**{name: tensor.to(device) for name, tensor in inputs.items()})[0]
            found.append(logits[:, -COMPARED_TOKENS:] if logits.dim() == 3 else logits)
        self.net.train(training)
        return found
