"""Entity-level scores of tagged sentences, by the rules of `conlleval` (Tjong Kim Sang and Buchholz 2000).

An entity counts as found where its first word, its last word and its type are all right. Over the whole set,

    precision = found / called        recall = found / true        f1 = 2 found / (called + true)

and 0 where the denominator is. `f1_macro` is the mean of the F1 of the types that are true or called somewhere;
`word_accuracy` the share of words with the right tag, O included.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

NAMES = ("f1", "precision", "recall", "f1_macro", "word_accuracy")
END = -1
"""Stands after the last word of each sentence."""
Entity = tuple[int, int, str]


def entities(tags: Sequence[str]) -> set[Entity]:
    """Returns (first word, word after the last, type) of each entity of one sentence in BIO; a stray I- begins one."""
    found: set[Entity] = set()
    start, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, of = tag.partition("-")
        if kind and (prefix != "I" or of != kind):
            found.add((start, place, kind))
            kind = ""
        if prefix != "O" and not kind:
            start, kind = place, of
    return found


def _f1(found: int, called: int, true: int) -> float:
    return 2 * found / (called + true) if called + true else 0.0


class EntityScores(Metric):
    """All entity scores over a whole set.

    Args:
        names: of NAMES.
        tags: names of the classes, in the order of their numbers.
    """

    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self, names: Sequence[str], tags: Sequence[str]):
        super().__init__()
        self.names, self.tags = tuple(names), tuple(tags)
        self.add_state("preds", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds predicted and true tags of whole sentences, (words + sentences,), END after each."""
        self.preds.append(preds)
        self.target.append(target)

    def compute(self) -> dict[str, Tensor]:
        """Returns the scores by name, and the F1 of each type as f1_of_<type>."""
        preds, target = dim_zero_cat(self.preds), dim_zero_cat(self.target)
        found, called, true = self._counted(preds.tolist(), target.tolist())
        by_type = {kind: _f1(found[kind], called[kind], true[kind]) for kind in sorted({*called, *true})}
        hits, calls, wanted = found.total(), called.total(), true.total()
        words = target != END
        scores = {
            "f1": _f1(hits, calls, wanted),
            "precision": hits / calls if calls else 0.0,
            "recall": hits / wanted if wanted else 0.0,
            "f1_macro": sum(by_type.values()) / max(1, len(by_type)),
            "word_accuracy": float((preds == target)[words].double().mean()) if words.any() else 0.0,
        }
        chosen = {name: scores[name] for name in self.names} | {f"f1_of_{kind}": one for kind, one in by_type.items()}
        return {name: torch.tensor(score) for name, score in chosen.items()}

    def _counted(self, preds: list[int], target: list[int]) -> tuple[Counter, Counter, Counter]:
        """Returns how many entities were found, called and true, by type."""
        found: Counter = Counter()
        called: Counter = Counter()
        true: Counter = Counter()
        start = 0
        for place, tag in enumerate(target):
            if tag != END:
                continue
            ours, theirs = (entities([self.tags[one] for one in some[start:place]]) for some in (preds, target))
            for counter, some in ((found, ours & theirs), (called, ours), (true, theirs)):
                counter.update(kind for _, _, kind in some)
            start = place + 1
        return found, called, true
