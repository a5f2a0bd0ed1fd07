"""Which tokens of a text a masked language model has to guess.

Of the tokens that are not special, `frac` are chosen (Devlin et al. 2019, section 3.1): 80 % of these become [MASK],
10 % another token, 10 % stay. They are chosen in runs of 1 to `span` words, a length n with probability proportional
to 1/n (Lan et al. 2020, section 3.1, n-gram masking); a word in pieces goes whole where `whole_words` says so.
"""

from dataclasses import dataclass

import numpy as np

from keepfrac.errors import UserError

IGNORED = -100
MASKED, RANDOM = 0.8, 0.9  # below the first: [MASK]; below the second: another token


@dataclass(frozen=True)
class Masking:
    """How texts of one tokenizer are masked.

    Args:
        frac: share of the tokens that are chosen, in (0, 1).
        span: most words of one run, >= 1.
        mask_id: number of [MASK].
        special: which tokens are never chosen and never put in, (vocabulary,) bool.
        continues: which tokens go on with the word before them, (vocabulary,) bool.
    """

    frac: float
    span: int
    mask_id: int
    special: np.ndarray
    continues: np.ndarray

    def __call__(self, ids: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Returns input ids and labels (-100 where there is no loss), both (tokens,) int64."""
        inputs, labels = ids.astype(np.int64), np.full(len(ids), IGNORED)
        chosen = self._chosen(ids, rng)
        labels[chosen] = ids[chosen]
        lot = rng.random(len(chosen))
        inputs[chosen[lot < MASKED]] = self.mask_id
        swapped = chosen[(lot >= MASKED) & (lot < RANDOM)]
        ordinary = np.flatnonzero(~self.special)
        inputs[swapped] = ordinary[rng.integers(len(ordinary), size=len(swapped))]
        return inputs, labels

    def _chosen(self, ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns the chosen positions: as `frac` says, one at least; fewer where a whole word would be too many."""
        ordinary = np.flatnonzero(~self.special[ids])
        if not len(ordinary):
            return ordinary
        starts = np.flatnonzero(~self.continues[ids[ordinary]] | (np.diff(ordinary, prepend=-2) > 1))
        words = np.split(ordinary, starts[1:])
        wanted, free = max(1, round(self.frac * len(ordinary))), np.ones(len(words), dtype=bool)
        chosen: list[int] = []
        lengths = 1 + np.searchsorted(self._lengths(), rng.random(len(words)))
        for first, length in zip(rng.permutation(len(words)), lengths, strict=True):
            for word in range(first, min(first + length, len(words))):
                if not free[word] or (chosen and len(chosen) + len(words[word]) > wanted):
                    break
                free[word] = False
                chosen.extend(words[word])
            if len(chosen) >= wanted:
                break
        return np.array(chosen)

    def _lengths(self) -> np.ndarray:
        """Returns the distribution function of a run's length, (span,)."""
        weights = 1 / np.arange(1, self.span + 1)
        return np.cumsum(weights / weights.sum())[:-1]


def masking_of(tokenizer, frac: float, span: int, whole_words: bool) -> Masking:
    """Returns the masking for a tokenizer.

    Raises:
        UserError: it has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise UserError(f"task=mlm: the tokenizer ({type(tokenizer).__name__}) has no mask token")
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    special = np.zeros(len(tokens), dtype=bool)
    special[tokenizer.all_special_ids] = True
    return Masking(frac, span, tokenizer.mask_token_id, special, _continues(tokens, special) & whole_words)


def _continues(tokens: list[str], special: np.ndarray) -> np.ndarray:
    """Returns which tokens go on with a word: by ## (WordPiece), or by the want of Ġ or ▁ (BPE, SentencePiece)."""
    if any(token.startswith("##") for token in tokens):
        return np.array([token.startswith("##") for token in tokens])
    for mark in ("Ġ", "▁"):
        if any(token.startswith(mark) for token in tokens):
            return np.array([not token.startswith(mark) for token in tokens]) & ~special
    return np.zeros(len(tokens), dtype=bool)
