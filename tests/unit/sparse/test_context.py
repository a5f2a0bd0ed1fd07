import torch

from keepfrac.sparse.context import Context, Draw, Padding


def test_padding_lists_real_tokens():
    padding = Padding.of(torch.tensor([[1, 1, 0], [1, 0, 0]]))
    assert padding.counts == (2, 1)
    assert padding.rows.tolist() == [0, 1, 3]
    weights = padding.of_weights(heads=2)
    assert weights.counts == (2, 2, 1, 1)
    assert weights.square
    assert weights.rows.tolist() == [0, 1, 3, 4, 6, 9]


def test_nothing_padded_is_no_padding():
    assert Padding.of(None) is None
    assert Padding.of(torch.ones(2, 3)) is None
    assert Padding.of(torch.zeros(2, 1, 3, 3)) is None  # a mask that was already widened


def test_padding_belongs_to_its_shape_alone():
    context = Context(0)
    context.begin(torch.tensor([[1, 1, 0], [1, 0, 0]]))
    assert context.padding(2, 3) is not None
    assert context.padding(3, 2) is None
    assert context.padding_of_weights(2, 4, 3) is context.padding_of_weights(2, 4, 3)
    context.begin(None)
    assert context.padding(2, 3) is None


def test_a_rotation_visits_all_and_depends_on_the_site():
    steps = [set(Draw(0, 1, step).rotation(10, 3, torch.device("cpu")).tolist()) for step in range(4)]
    assert set().union(*steps) == set(range(10))
    assert all(len(step) == 3 for step in steps)
    assert (
        Draw(0, 2, 0).rotation(100, 9, torch.device("cpu")).tolist()
        != Draw(0, 1, 0).rotation(100, 9, torch.device("cpu")).tolist()
    )
