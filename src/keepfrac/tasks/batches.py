"""The order of batches: of similar length, the same for the same seed and epoch, and resumable at any batch.

Rows are shuffled, sorted by length inside windows of 50 batches, cut into batches, and the batches are shuffled. With
several processes each takes its share of every global batch, so that all of them take as many steps.
"""

from collections.abc import Iterator

import numpy as np

WINDOW = 50


def training_order(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Returns the global batches of one epoch: arrays of row indices.

    An incomplete batch at the end is left out (other rows each epoch); fewer rows than a batch make one batch.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    order = order[: max(1, len(order) // batch_size) * batch_size]
    batches: list[np.ndarray] = []
    for start in range(0, len(order), WINDOW * batch_size):
        window = order[start : start + WINDOW * batch_size]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches += [window[i : i + batch_size] for i in range(0, len(window), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


class TrainingBatches:
    """Yields, for one process, its share of each global batch of the current epoch.

    Args:
        lengths: tokens of each row, (rows,).
        batch_size: rows of one process in a batch.
        seed: of the order.
        rank: this process, from 0.
        world: how many processes.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.rank, self.world = rank, world
        self.epoch, self.position = 0, 0

    @property
    def sampler(self) -> "TrainingBatches":
        """Itself: where Lightning looks for `set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Goes to the beginning of `epoch`, unless it is already in it."""
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def start_at(self, epoch: int, batch: int) -> None:
        """Makes the next iteration begin at this batch of this epoch; later epochs begin at their first."""
        self.epoch, self.position = epoch, batch

    def __len__(self) -> int:
        return max(1, len(self.lengths) // (self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[int]]:
        order = training_order(self.lengths, self.batch_size * self.world, self.seed, self.epoch)
        first, self.position = self.position, 0
        for batch in order[first:]:
            whole = len(batch) - len(batch) % self.world  # equal shares: the mean of means is the mean
            yield batch[:whole][self.rank :: self.world].tolist()


class EvaluationBatches:
    """Yields every row exactly once over all processes, similar lengths together, as many batches in each process.

    Args:
        lengths: tokens of each row, (rows,).
        batch_size: most rows of one process in a batch.
        rank: this process, from 0.
        world: how many processes.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, rank: int = 0, world: int = 1):
        order = np.argsort(-lengths, kind="stable")
        count = -(-len(order) // (batch_size * world))
        self.batches = [part.tolist() for part in np.array_split(order[rank::world], count)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)
