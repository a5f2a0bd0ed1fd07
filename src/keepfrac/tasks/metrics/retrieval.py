"""How well each text finds what belongs to it among all second texts of a set.

The queries are the different first texts, the corpus the different second texts, ranked by cosine. With binary
relevance and ten ranks, of each query and then in the mean:

    ndcg_at_10     sum over relevant ranks r <= 10 of 1 / log2(r + 1), over that of the best possible order
    mrr_at_10      1 / rank of the first relevant one; 0 beyond rank 10
    recall_at_10   share of the relevant ones in the first ten ranks
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

NAMES = ("ndcg_at_10", "mrr_at_10", "recall_at_10")
RANKS = 10
RELEVANT = 0.5
"""A passage with a relevance above it is relevant."""
CHUNK = 1_024


def ranking_scores(cosines: Tensor, relevant: Tensor) -> Tensor:
    """Returns the scores of each query, (queries, 3), in the order of NAMES.

    Args:
        cosines: (queries, corpus).
        relevant: which belong to the query, (queries, corpus) bool, one at least.
    """
    top = cosines.topk(min(RANKS, cosines.shape[1])).indices
    hits = relevant.gather(1, top).double()
    gains = 1 / torch.log2(torch.arange(hits.shape[1], dtype=torch.double) + 2)
    wanted = relevant.sum(1)
    best = torch.cat([gains.new_zeros(1), gains.cumsum(0)])[wanted.clamp(max=len(gains))]
    first = 1 / (hits.argmax(1).double() + 1)
    return torch.stack([(hits * gains).sum(1) / best, first * (hits.sum(1) > 0), hits.sum(1) / wanted], dim=1)


class RerankingScores(Metric):
    """The same scores of passages that are given for each query, ranked by a number; relevant above 1/2.

    A query none of whose passages is relevant has no score and is left out.

    Args:
        names: of NAMES.
    """

    full_state_update = False
    preds: list[Tensor]
    target: list[Tensor]

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = tuple(names)
        self.add_state("preds", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds a number for each pair, (rows,), and its relevance and query, (rows, 2)."""
        self.preds.append(preds.float())
        self.target.append(target)

    def compute(self) -> dict[str, Tensor]:
        """Returns the mean scores by name."""
        preds, target = dim_zero_cat(self.preds).cpu(), dim_zero_cat(self.target).cpu()
        relevant, queries = target[:, 0] > RELEVANT, target[:, 1]
        groups = [queries == query for query in queries[relevant].unique()]
        found = [ranking_scores(preds[group][None], relevant[group][None]) for group in groups]
        means = torch.cat(found).mean(0).float() if found else torch.zeros(len(NAMES))
        chosen = dict(zip(NAMES, means, strict=True))
        return {name: chosen[name] for name in self.names}


class RetrievalScores(Metric):
    """The scores over a whole set.

    Args:
        names: of NAMES.
    """

    full_state_update = False
    vectors: list[Tensor]
    numbers: list[Tensor]

    def __init__(self, names: Sequence[str]):
        super().__init__()
        self.names = tuple(names)
        self.add_state("vectors", [], dist_reduce_fx="cat")
        self.add_state("numbers", [], dist_reduce_fx="cat")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Adds both vectors of each pair, (rows, 2 width), and the numbers of its texts, (rows, 2)."""
        self.vectors.append(preds.float())
        self.numbers.append(target)

    def compute(self) -> dict[str, Tensor]:
        """Returns the mean scores by name."""
        vectors, numbers = dim_zero_cat(self.vectors).cpu(), dim_zero_cat(self.numbers).cpu()
        queries, corpus = vectors.chunk(2, dim=1)
        (asked, queries), (among, corpus) = _different(numbers[:, 0], queries), _different(numbers[:, 1], corpus)
        relevant = torch.zeros(len(queries), len(corpus), dtype=torch.bool)
        relevant[asked, among] = True
        found = [
            ranking_scores(queries[start : start + CHUNK] @ corpus.T, relevant[start : start + CHUNK])
            for start in range(0, len(queries), CHUNK)
        ]
        means = dict(zip(NAMES, torch.cat(found).mean(0).float(), strict=True))
        return {name: means[name] for name in self.names}


def _different(numbers: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which of the different texts each row has, and one vector of each text."""
    ids, inverse = numbers.unique(return_inverse=True)
    chosen = vectors.new_empty(len(ids), vectors.shape[1])
    chosen[inverse] = vectors
    return inverse, chosen
