"""How alike are two texts: the cosine of their vectors against a score (Reimers and Gurevych 2019, section 3).

The loss is the squared difference of the cosine and the score, the score brought from its own range to 0 ... 1.
"""

from torch import Tensor
from torch.nn.functional import mse_loss

from keepfrac.settings import choice, number, settings, text
from keepfrac.tasks.base import Batch
from keepfrac.tasks.embedding import PairEmbeddings
from keepfrac.tasks.file_task import FileTask
from keepfrac.tasks.glue import GlueTask


class Similarity(PairEmbeddings):
    """Pairs with a score; labels of a batch are scores, float32, (B,)."""

    @settings
    class Settings(PairEmbeddings.Settings):
        """What the scores mean."""

        least: float = number("the score of texts that have nothing in common", low=-1e9)
        most: float = number("the score of texts that mean the same", low=-1e9)

        def check(self) -> None:
            if self.least >= self.most:
                raise self.error("most", f"allowed is more than task.least={self.least:g}")

    settings: Settings
    problem = "regression"

    def collate(self, items: list) -> Batch:
        batch = super().collate(items)
        return {**batch, "labels": batch["labels"].float()}

    def loss(self, outputs, batch: Batch) -> Tensor:
        """Returns the mean over pairs of the squared difference of cosine and score."""
        return self.row_losses(outputs, batch).mean()

    def row_losses(self, outputs, batch: Batch) -> Tensor:
        """Returns the squared difference of cosine and score of each pair, (B,)."""
        own = self.settings
        wanted = (batch["labels"] - own.least) / (own.most - own.least)
        return mse_loss(self.predict(outputs, batch)[0], wanted, reduction="none")

    def predict(self, outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns cosines and scores, (B,) each."""
        left, right = self.embedded(outputs, batch)
        return (left * right).sum(-1), batch["labels"]


class GlueSimilarity(Similarity, GlueTask):
    """STS-B, by cosines."""

    @settings
    class Settings(Similarity.Settings, GlueTask.Settings):
        """Those of both."""

        name: str = text("the task's name in results")
        corpus: str = choice("the GLUE task whose pairs they are", "stsb")

        @property
        def layout_name(self) -> str:
            return self.corpus

        def check(self) -> None:
            Similarity.Settings.check(self)
            GlueTask.Settings.check(self)

    settings: Settings


class FileSimilarity(Similarity, FileTask):
    """A user's own pairs with scores."""

    @settings
    class Settings(Similarity.Settings, FileTask.Settings):
        """Those of both."""

        def check(self) -> None:
            Similarity.Settings.check(self)
            FileTask.Settings.check(self)
            if self.problem != "regression" or self.multi_label:
                raise self.error("problem", "allowed here is regression, without task.multi_label")
            if self.text_pair is None:
                raise self.error("text_pair", "the column of the second text is needed")

    settings: Settings

    @property
    def limits(self) -> tuple[float, float]:
        return self.settings.least, self.settings.most
