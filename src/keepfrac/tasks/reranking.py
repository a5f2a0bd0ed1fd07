"""RerankingTask: which of a query's passages answer it? Query and passage are read together: a cross-encoder.

The loss is the binary cross entropy of the one logit and the relevance; the scores rank the passages of each query.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import MetricCollection

from keepfrac.errors import UserError
from keepfrac.settings import settings
from keepfrac.settings import text as text_field
from keepfrac.tasks.base import Batch
from keepfrac.tasks.data.files import OwnFiles, read_table, text_columns
from keepfrac.tasks.data.labels import to_rows
from keepfrac.tasks.metrics.retrieval import RELEVANT, RerankingScores
from keepfrac.tasks.rows import Rows, Splits, completed, subset
from keepfrac.tasks.text import TextTask
from keepfrac.tasks.tokens import TokenRows


@dataclass(frozen=True)
class Judged(TokenRows):
    """Tokens of query and passage, the relevance, and the number of the query in its split.

    Args:
        relevance: between 0 and 1, a number a row.
        queries: a number a row; equal queries have equal numbers.
    """

    relevance: list[float]
    queries: list[int]

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | None, float, int]:
        return *self.tokens.row(index), self.relevance[index], self.queries[index]


class RerankingTask(TextTask):
    """A user's own pairs of query and passage with their relevance.

    A batch holds what that of any text does; labels, the relevance, float32, and queries, int64, (batch,) each.
    """

    @settings
    class Settings(TextTask.Settings):
        """The files and their columns."""

        train_file: str | None = text_field("the training pairs (.csv, .tsv or .jsonl)", null=True)
        validation_file: str | None = text_field("what chooses the best checkpoint; null: cut from train", null=True)
        test_file: str | None = text_field("what is reported; null: cut from train", null=True)
        text: str = text_field("column of the query")
        text_pair: str = text_field("column of the passage")
        label: str = text_field("column of the relevance, 0 to 1")

    settings: Settings
    problem = "reranking"

    def read(self) -> Splits:
        """Reads the files, and cuts from train what has no file; a query stands in one split."""
        own, files = self.settings, OwnFiles.needed(self.settings)
        columns = text_columns(own.text, own.text_pair, own.label)
        rows = {split: to_rows(read_table(path, columns), None, (0.0, 1.0)) for split, path in files.paths.items()}
        train, validation, test, how = completed(rows, files.names)
        source = files.source
        for split, part in (("validation", validation), ("test", test)):
            if len(part) and max(part["label"]) <= RELEVANT:
                raise UserError(
                    f"{source}: no passage of the {split} split is relevant to its query (above {RELEVANT:g})"
                )
        return Splits(subset(train, own.rows), validation, test, source, how, labels=None)

    def encode(self, rows: Rows) -> Judged:
        """Returns tokens and relevance of `rows`, and the numbers of their queries."""
        numbers: dict[str, int] = {}
        queries = [numbers.setdefault(query, len(numbers)) for query in rows["text"]]
        return Judged(self.tokens(rows), rows["label"], queries)

    def collate(self, items: list) -> Batch:
        """Pads rows to the longest of them."""
        return {
            **self.padded([(ids, types) for ids, types, *_ in items]),
            "labels": torch.tensor([relevance for *_, relevance, _ in items], dtype=torch.float32),
            "queries": torch.tensor([query for *_, query in items]),
        }

    def inputs(self, batch: Batch) -> Batch:
        return {name: value for name, value in super().inputs(batch).items() if name != "queries"}

    def loss(self, outputs, batch: Batch) -> Tensor:
        """Returns the mean binary cross entropy of logit and relevance."""
        return self.row_losses(outputs, batch).mean()

    def row_losses(self, outputs, batch: Batch) -> Tensor:
        """Returns the binary cross entropy of each pair, (batch,)."""
        logits = outputs.logits.float().squeeze(-1)
        return binary_cross_entropy_with_logits(logits, batch["labels"], reduction="none")

    def predict(self, outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the logits, (batch,), and relevance and query of each pair, (batch, 2)."""
        found = torch.stack([batch["labels"].double(), batch["queries"].double()], dim=1)
        return outputs.logits.float().squeeze(-1), found

    def metrics(self, split: str) -> MetricCollection:
        return MetricCollection({"ranking": RerankingScores(self.metric_names)})
