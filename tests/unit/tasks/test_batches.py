import numpy as np
import pytest

from keepfrac.tasks.batches import EvaluationBatches, TrainingBatches, training_order

LENGTHS = np.random.default_rng(3).integers(3, 100, size=1003)


def test_every_full_batch_once_and_no_row_twice():
    order = training_order(LENGTHS, 16, seed=1, epoch=0)
    rows = np.concatenate(order)
    assert [len(batch) for batch in order] == [16] * 62
    assert len(set(rows.tolist())) == 62 * 16


def test_seed_and_epoch_decide():
    def flat(seed, epoch):
        return np.concatenate(training_order(LENGTHS, 16, seed, epoch)).tolist()

    assert flat(1, 0) == flat(1, 0)
    assert len({tuple(flat(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_padding_is_less_than_a_quarter_of_a_plain_shuffle():
    def padding(batches):
        return sum(LENGTHS[batch].max() * len(batch) - LENGTHS[batch].sum() for batch in batches)

    order = np.random.default_rng(0).permutation(1003)[:992].reshape(62, 16)
    assert padding(training_order(LENGTHS, 16, 1, 0)) < padding(order) / 4


def test_long_batches_do_not_come_in_order():
    longest = [LENGTHS[batch].max() for batch in training_order(LENGTHS, 16, 1, 0)]
    assert longest != sorted(longest)
    assert longest != sorted(longest, reverse=True)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_same_global_batches(world):
    whole = list(TrainingBatches(LENGTHS, 6 * world, seed=1))
    parts = [list(TrainingBatches(LENGTHS, 6, 1, rank, world)) for rank in range(world)]
    assert {len(part) for part in parts} == {len(whole)} == {len(TrainingBatches(LENGTHS, 6, 1, 0, world))}
    for batch, *shares in zip(whole, *parts, strict=True):
        assert {len(share) for share in shares} == {6}
        assert sorted(batch) == sorted(row for share in shares for row in share)


def test_fewer_rows_than_a_batch_make_one_with_equal_shares():
    parts = [list(TrainingBatches(LENGTHS[:5], 8, 1, rank, 2)) for rank in range(2)]
    assert [[len(batch) for batch in part] for part in parts] == [[2], [2]]
    assert len(list(TrainingBatches(LENGTHS[:5], 8, 1))) == len(TrainingBatches(LENGTHS[:5], 8, 1)) == 1


def test_it_goes_on_where_it_was_interrupted():
    whole = TrainingBatches(LENGTHS, 16, 1)
    epochs = []
    for epoch in range(3):
        whole.set_epoch(epoch)
        epochs.append(list(whole))
    resumed = TrainingBatches(LENGTHS, 16, 1)
    resumed.start_at(epoch=1, batch=40)
    resumed.set_epoch(1)  # as Lightning does at the start of each epoch
    assert list(resumed) == epochs[1][40:]
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]
    assert len(resumed) == 62, "the length is the whole epoch's"


def test_lightning_finds_the_sampler_to_set_the_epoch_of():
    from lightning_fabric.utilities.data import _set_sampler_epoch
    from torch.utils.data import DataLoader

    batches = TrainingBatches(LENGTHS, 16, 1)
    _set_sampler_epoch(DataLoader(list(range(1003)), batch_sampler=batches), 7)
    assert batches.epoch == 7


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_takes_every_row_once_in_as_many_batches_everywhere(world):
    parts = [EvaluationBatches(LENGTHS, 16, rank, world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    rows = [row for part in parts for batch in part for row in batch]
    assert sorted(rows) == list(range(1003))
    assert all(0 < len(batch) <= 16 for part in parts for batch in part)
