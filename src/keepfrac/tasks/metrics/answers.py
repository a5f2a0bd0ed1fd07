"""Exact match and F1 of answers, as SQuAD's own script counts them (torchmetrics holds that script)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.text import squad
from torchmetrics.utilities import dim_zero_cat

NAMES = ("f1", "exact_match")


class AnswerScores(Metric):
    """The scores over a whole set. A question may have several windows of its context; the best span of all counts.

    Args:
        names: of NAMES.
        read: (number of a question, first character, one after the last) -> (the answer, the right ones); no
            characters: no answer.
    """

    full_state_update = False
    spans: list[Tensor]
    numbers: list[Tensor]

    def __init__(self, names: Sequence[str], read: Callable[[int, int, int], tuple[str, list[str]]]):
        super().__init__()
        self.names, self.read = tuple(names), read
        self.add_state("spans", [], dist_reduce_fx="cat")
        self.add_state("numbers", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds windows: scores of best span and of no answer, the span's characters (rows, 4); questions (rows,)."""
        self.spans.append(preds.double())
        self.numbers.append(target)

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores by name, between 0 and 1."""
        spans, numbers = dim_zero_cat(self.spans).cpu(), dim_zero_cat(self.numbers).cpu()
        best: dict[int, tuple[float, float, int, int]] = {}
        for number, (score, none, first, end) in zip(numbers.tolist(), spans.tolist(), strict=True):
            had = best.get(number)
            # no answer is as likely as it is in the window where it is least likely, as in BERT's own script
            least = none if had is None else min(none, had[1])
            found = (score, int(first), int(end)) if had is None or score > had[0] else (had[0], had[2], had[3])
            best[number] = (found[0], least, found[1], found[2])
        preds, target = [], []
        for number, (score, none, first, end) in best.items():
            text, right = self.read(number, *((first, end) if score > none else (0, 0)))
            preds.append({"id": str(number), "prediction_text": text})
            target.append({"id": str(number), "answers": {"answer_start": [0] * len(right), "text": right}})
        found = squad(preds, target)
        return {name: (found[name] / 100).float() for name in self.names}


def best_spans(starts: Tensor, ends: Tensor, allowed: Tensor, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the score of the best span of each row and its first and last token, (rows,) each.

    Args:
        starts: logits of the first token, (rows, tokens).
        ends: logits of the last one, (rows, tokens).
        allowed: which tokens may be part of an answer, (rows, tokens) bool; rows without any get -inf.
        longest: most tokens of a span.
    """
    places = torch.arange(starts.shape[1], device=starts.device)
    apart = places[None, :] - places[:, None]
    inside = (apart >= 0) & (apart < longest)
    scores = starts.masked_fill(~allowed, -torch.inf)[:, :, None] + ends.masked_fill(~allowed, -torch.inf)[:, None, :]
    best, index = scores.masked_fill(~inside, -torch.inf).flatten(1).max(1)
    return best, index // len(places), index % len(places)
