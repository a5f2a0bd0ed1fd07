"""Which part of an activation is kept for the backward pass: a `Selector`, and the pure functions that choose.

An activation X has shape (batch, length, features), N = batch * length tokens. A selector cuts it into units, scores
them, and keeps a share keep_frac of them:

| unit    | what is one unit                                       | dW = G^T X_hat then                      |
| ------- | ------------------------------------------------------ | ---------------------------------------- |
| column  | one feature of all tokens (or of one sample's tokens)  | has exact columns J and zero columns     |
| token   | one token's vector                                     | is a sum over the kept tokens            |
| block   | `length` consecutive numbers in memory                 | as the original code has it, see below   |
| element | one number                                             | of X with its small numbers set to 0     |

Scores are a norm of the unit: inf max |x|, l1 sum |x|, l2 sqrt(sum x^2), var the variance; for elements all are |x|.

| rule         | keeps, of k = ceil(keep_frac * n) units                                                            |
| ------------ | -------------------------------------------------------------------------------------------------- |
| top          | the k largest scores                                                                               |
| sampled      | k drawn without replacement, unit i with probability p_i = min(1, c * score_i), c such that the    |
|              | p_i sum to k: systematic sampling in random order (Madow 1949)                                     |
| mixed        | the (1 - share) * k largest and a uniform draw of share * k of the others                          |
| random       | a uniform draw of k                                                                                |
| stratified   | the units in order of their scores, cut into k strata of equal size: one of each, at random, so    |
|              | that large and small ones are kept in their natural shares                                         |
| shifted_relu | elements above mean + std * Phi^-1(1 - keep_frac), the share that a normal distribution has there  |

`coverage` gives that share of k to a rotation that visits every column in turn, whatever the rule: without it the top
rule starves the columns that are never large (their weights get no gradient at all).
`scale=inverse` divides what is kept by its probability of being kept: with a random rule the gradients of the sites
linear and attention are then right in the mean (softmax and layer_norm square what they keep: `sparsify` refuses them).
`scope` says among whom units compete: all of the batch, or each sample by itself.

Sources: column-row sampling, Drineas et al. 2006; winner-take-all CRS, Liu et al. 2023 (WTA-CRS: `mixed` with
scale=inverse is its estimator with uniform draws); exact top-k of |x| per sample, Jiang et al. 2022 (BackRazor);
blocks are what the code of "Bert Finetune Backward Sparsify" calls columns (unit=block norm=inf scope=batch).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from statistics import NormalDist

import torch
from torch import Tensor

from keepfrac.errors import UserError
from keepfrac.sparse.context import Draw
from keepfrac.tensors.rng import num_certain, systematic

UNITS = ("column", "token", "block", "element")
RULES = ("top", "sampled", "mixed", "random", "stratified", "shifted_relu")
NORMS = ("inf", "l1", "l2", "var")
SCALES = ("none", "inverse")
SCOPES = ("batch", "sample")
_ORDERS = {"inf": math.inf, "l1": 1, "l2": 2}
# Of a slice of rows whose norms are taken at once.
_NUMBERS = 1 << 18


@dataclass(frozen=True)
class Selector:
    """What to keep of an activation; the defaults are those of `method=norm`.

    Attributes:
        keep_frac: share of the units kept, in (0, 1]; of real tokens' units, padding does not count.
        unit: column | token | block | element.
        rule: top | sampled | mixed | random | stratified | shifted_relu (elements only).
        norm: inf | l1 | l2 | var: the score of a unit.
        scale: none | inverse (by the probability of being kept; needs a random rule).
        scope: batch | sample.
        share: of the budget drawn at random by the rule `mixed`, in [0, 1].
        coverage: share of the budget that visits all columns in turn, in [0, 1]; columns only.

    Raises:
        UserError: a value is not allowed, or two do not go together.
    """

    keep_frac: float
    unit: str = "column"
    rule: str = "sampled"
    norm: str = "l2"
    scale: str = "none"
    scope: str = "batch"
    share: float = 0.5
    coverage: float = 0.0

    def __post_init__(self) -> None:
        allowed = {"unit": UNITS, "rule": RULES, "norm": NORMS, "scale": SCALES, "scope": SCOPES}
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise UserError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(values)}")
        for field in fields(self):
            if field.name in ("keep_frac", "share", "coverage"):
                _check_share(field.name, getattr(self, field.name))
        if self.keep_frac == 0:
            raise UserError("keep_frac=0 would keep nothing: it must be above 0 and at most 1")
        self._check_pairs()

    def _check_pairs(self) -> None:
        if self.rule == "shifted_relu" and self.unit != "element":
            raise UserError(f"rule=shifted_relu selects elements: use unit=element, not unit={self.unit}")
        if self.coverage and (self.unit != "column" or self.scope != "batch"):
            raise UserError("coverage visits columns of the whole batch in turn: use unit=column scope=batch")
        if self.scale == "inverse" and (self.rule in ("top", "shifted_relu") or self.coverage):
            raise UserError(
                "scale=inverse needs probabilities: use rule=random, sampled, stratified or mixed with coverage=0"
            )
        if self.scale == "inverse" and self.rule == "mixed" and self.share == 0:
            raise UserError("scale=inverse with rule=mixed needs a random part: set share above 0")

    @property
    def needs_scores(self) -> bool:
        """Whether the rule looks at the activation."""
        return self.rule != "random" and self.coverage < 1

    def budget(self, units: float) -> int:
        """Returns how many of `units` units are kept: ceil(keep_frac * units), at least 1 where there is one."""
        # The small term undoes products like 0.1 * 30 = 3.0000000000000004.
        return min(math.floor(units), max(1, math.ceil(self.keep_frac * units - 1e-9))) if units >= 1 else 0


def _check_share(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"{name}={value!r}: it must be a number from 0 to 1")


def row_scores(units: Tensor, norm: str) -> Tensor:
    """Returns the norm of each row of `units` (n, width), as float32 (n,)."""
    # Slice by slice: asking for the float32 norm of bfloat16 numbers at once is 10 times slower on a CPU.
    parts = units.split(_slice(units, max(1, _NUMBERS // units.shape[1])))
    if norm == "var":
        return torch.cat([part.float().var(1, unbiased=False) for part in parts])
    return torch.cat([torch.linalg.vector_norm(part.float(), _ORDERS[norm], dim=1) for part in parts])


def _slice(x: Tensor, rows: int) -> int:
    """Rows of `x` at a time: few on a CPU, so that a slice and its square stay in the cache; all of them on a GPU."""
    return rows if x.device.type == "cpu" else max(len(x), 1)


def column_scores(x: Tensor, norm: str, real: Tensor | None = None) -> Tensor:
    """Returns the norm of each column of `x` (tokens, features), as float32 (features,).

    Args:
        x: the activation.
        norm: inf | l1 | l2 | var.
        real: (tokens,) booleans; the other tokens do not count. None: all count.
    """
    total, mean = x.new_zeros(x.shape[1], dtype=torch.float32), None
    count = max(1, len(x) if real is None else int(real.sum())) if norm == "var" else 1
    if norm == "var":  # of one pass, E[x^2] - E[x]^2 loses all digits where the mean is large
        mean = torch.zeros_like(total)
        for part in _real_slices(x, real):
            mean += part.sum(0)
        mean /= count
    for part in _real_slices(x, real, mean):
        if norm == "inf":
            total = torch.maximum(total, torch.maximum(part.amax(0), -part.amin(0)))
        elif norm == "l1":
            total += part.abs().sum(0)
        else:
            total += (part * part).sum(0)
    return total.sqrt() if norm == "l2" else total / count


def _real_slices(x: Tensor, real: Tensor | None, mean: Tensor | None = None) -> Iterator[Tensor]:
    """Yields the tokens of `x`, some at a time, in float32 and less `mean`; zeros for padding."""
    size = _slice(x, 256)
    for start in range(0, len(x), size):
        part = x[start : start + size].float()
        part = part if mean is None else part - mean
        yield part if real is None else part * real[start : start + size, None]


def choose_units(
    scores: Tensor | None, n: int, k: int, selector: Selector, draw: Draw, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Chooses k of n units.

    Args:
        scores: (n,), not negative; None where the rule needs none.
        n: number of units.
        k: how many to keep.
        selector: its rule, share, coverage and scale are used.
        draw: randomness of the site and step, for the rotation.
        generator: for the random rules; its device is where the units are.

    Returns:
        Positions (k,) int64 in ascending order, and what to multiply them by: (k,) float32, or None for 1.
    """
    device = generator.device if scores is None else scores.device
    if k == 0:
        return torch.zeros(0, dtype=torch.int64, device=device), None
    turn = max(1, round(selector.coverage * k)) if selector.coverage else 0
    if turn:
        due = draw.rotation(n, turn, device)
        if turn == k:
            return due.sort().values, None
        rest = _others(due, n)
        some = None if scores is None else scores[rest]
        ruled, _ = _rule(some, n - turn, k - turn, selector=selector, generator=generator)
        return torch.cat([due, rest[ruled]]).sort().values, None
    picked, weight = _rule(scores, n, k, selector=selector, generator=generator)
    picked, order = picked.sort()
    return picked, None if weight is None else weight[order]


def _rule(
    scores: Tensor | None, n: int, k: int, selector: Selector, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    inverse = selector.scale == "inverse"
    if selector.rule == "random":
        picked, weight = _uniform(n, k, generator)
        return picked, weight if inverse else None
    assert scores is not None
    if selector.rule == "sampled":
        picked, weight = _systematic(scores, k, generator)
    elif selector.rule == "stratified":
        picked, weight = _stratified(scores, k, generator)
    elif selector.rule == "mixed":
        drawn = round(selector.share * k)
        if inverse and k < n:
            drawn = max(1, drawn)  # without a draw the others would have no chance at all
        best = scores.topk(k - drawn, sorted=False).indices
        others = _others(best, n)
        picked, weight = _uniform(len(others), drawn, generator)
        picked = torch.cat([best, others[picked]])
        weight = torch.cat([torch.ones_like(best, dtype=torch.float32), weight])
    else:
        return scores.topk(k, sorted=False).indices, None
    return picked, weight if inverse else None


def _others(positions: Tensor, n: int) -> Tensor:
    """The positions of 0 .. n-1 that are not among `positions`."""
    free = torch.ones(n, dtype=torch.bool, device=positions.device)
    return free.index_fill_(0, positions, False).nonzero().reshape(-1)


def _uniform(n: int, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    picked = torch.randperm(n, generator=generator, device=generator.device)[:k]
    return picked, torch.full((k,), n / max(k, 1), dtype=torch.float32, device=generator.device)


def _systematic(scores: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws k without replacement with probabilities min(1, c * score); returns positions and 1 / probability."""
    scores = scores.double()
    scores = scores + scores.max().clamp(min=1e-30) * 1e-9
    order = scores.argsort(descending=True)
    ranked = scores[order]
    tail = ranked.flip(0).cumsum(0).flip(0)
    certain = num_certain(ranked, tail, k)
    sure, rest = order[:certain], order[certain:]
    drawn = k - certain
    if drawn == 0:
        return sure, torch.ones(certain, dtype=torch.float32, device=scores.device)
    rest = rest[torch.randperm(len(rest), generator=generator, device=generator.device)]
    chance = scores[rest] * (drawn / scores[rest].sum())
    start = torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64)
    hit = systematic(chance, chance.cumsum(0)[-1], count=drawn, start=start)
    weight = torch.cat([torch.ones(certain, device=scores.device), 1 / chance[hit]])
    return torch.cat([sure, rest[hit]]), weight.float()


def _stratified(scores: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws one unit of each of k strata in order of score; returns positions and the strata's sizes."""
    order, device = scores.argsort(descending=True), scores.device
    edges = torch.arange(k + 1, device=device) * len(scores) // k
    sizes = edges.diff()
    within = torch.rand(k, generator=generator, device=device, dtype=torch.float64)
    return order[edges[:-1] + (within * sizes).long()], sizes.float()


def shifted_relu_boundary(x: Tensor, keep_frac: float, real: Tensor | None = None) -> Tensor:
    """Returns the number above which a normal distribution of the mean and deviation of `x` has keep_frac of its mass.

    Args:
        x: (tokens, features).
        keep_frac: in (0, 1).
        real: (tokens,) booleans; the other tokens do not count. None: all count.
    """
    part = (x if real is None else x[real]).float()
    return part.mean() + part.std(unbiased=False) * NormalDist().inv_cdf(1 - keep_frac)
