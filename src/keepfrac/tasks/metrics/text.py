"""Scores of generated texts against one reference or many.

    bleu      sacrebleu, tokenised as by mteval-13a, in lower case, as the E2E challenge's own script; in [0, 1]
    nist      nltk, n-grams up to 5, on the same tokens; from 0, about 8.5 is good on E2E
    rouge_l   torchmetrics, F1 of the longest common subsequence (Lin 2004), the best reference of each text; in [0, 1].
              Tokens as in Google's rouge-score without stemming (runs of a-z and 0-9, lower case)
    chrf      sacrebleu's chrF++ (words up to 2); in [0, 1]

METEOR and CIDEr are left out: no package that is kept up computes them as published without Java (nltk's METEOR needs
a WordNet that it downloads, and differs from the published one).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from keepfrac.errors import UserError

References = Sequence[Sequence[str]]
NGRAMS = 5
NEEDS = {"bleu": "sacrebleu", "chrf": "sacrebleu", "nist": "nltk"}


def check_installed(names: Sequence[str]) -> None:
    """Raises a UserError where a score needs a package that is not installed."""
    for name in names:
        package = NEEDS.get(name)
        if package and importlib.util.find_spec(package) is None:
            raise UserError(
                f"task.metrics: {name} needs the package {package}, which is not installed: type"
                " `make install`, or leave it out, such as task.metrics=[rouge_l]"
            )


def bleu(texts: Sequence[str], references: References) -> float:
    """Returns corpus BLEU, case-insensitive; Papineni et al. 2002."""
    from sacrebleu.metrics import BLEU

    return BLEU(lowercase=True).corpus_score(list(texts), _streams(references)).score / 100


def chrf(texts: Sequence[str], references: References) -> float:
    """Returns corpus chrF++; Popovic 2017."""
    from sacrebleu.metrics import CHRF

    return CHRF(word_order=2).corpus_score(list(texts), _streams(references)).score / 100


def nist(texts: Sequence[str], references: References) -> float:
    """Returns corpus NIST, case-insensitive; Doddington 2002. 0 where no text has a word."""
    from nltk.translate.nist_score import corpus_nist
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize = Tokenizer13a()
    generated = [tokenize(text.lower()).split() for text in texts]
    longest = max(map(len, generated))
    wanted = [[tokenize(one.lower()).split() for one in some] for some in references]
    return float(corpus_nist(wanted, generated, min(NGRAMS, longest))) if longest else 0.0


def rouge_l(texts: Sequence[str], references: References) -> float:
    """Returns the mean over texts of ROUGE-L's F1 with the best reference; Lin 2004."""
    from torchmetrics.functional.text.rouge import rouge_score

    found = rouge_score(list(texts), [list(some) for some in references], accumulate="best", rouge_keys="rougeL")
    return float(found["rougeL_fmeasure"])


def _streams(references: References) -> list[Any]:
    """Returns references as sacrebleu takes them: the first of each text, the second, ..., None where there is none.

    With "" there, a short text would find a reference as short as itself, and BLEU would not penalise it.
    """
    most = max(map(len, references))
    return [[some[i] if i < len(some) else None for some in references] for i in range(most)]


SCORES: dict[str, Callable[[Sequence[str], References], float]] = {
    "bleu": bleu,
    "nist": nist,
    "rouge_l": rouge_l,
    "chrf": chrf,
}


class TextScores(Metric):
    """Scores over a whole set, gathered as token ids from all processes.

    Args:
        names: keys of SCORES.
        read: (tokens of all texts, numbers of their MRs) -> (texts, references of each).
    """

    full_state_update = False
    tokens: list[Tensor]
    numbers: list[Tensor]

    def __init__(self, names: Sequence[str], read: Callable[[Tensor, Tensor], tuple[list[str], References]]):
        super().__init__()
        self.names, self.read = tuple(names), read
        self.add_state("tokens", [], dist_reduce_fx="cat")
        self.add_state("numbers", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds generated tokens (rows, most tokens of a text) and the numbers of their MRs (rows,)."""
        self.tokens.append(preds)
        self.numbers.append(target)

    def compute(self) -> dict[str, Tensor]:
        """Returns all scores by name."""
        numbers = dim_zero_cat(self.numbers)
        order = torch.argsort(numbers)
        texts, references = self.read(dim_zero_cat(self.tokens)[order], numbers[order])
        return {name: torch.tensor(SCORES[name](texts, references)) for name in self.names}
