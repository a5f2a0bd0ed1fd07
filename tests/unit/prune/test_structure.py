import pytest

from keepfrac.errors import UserError
from keepfrac.prune.scores import layers_to_keep
from keepfrac.prune.structure import LayerCounts, LayerStructure, ModelShape, Structure, keep_layers

COUNTS = [LayerCounts(4, 10, {"query": 3}), LayerCounts(4, 10)]


def test_json_round_trip():
    layers = (LayerStructure((0, 2), (1, 5), {"query": (0, 2)}), LayerStructure((), (), {}, dropped=True))
    structure = Structure(layers)
    assert Structure.from_json(structure.to_json()) == structure
    assert Structure.full(COUNTS).counts() == COUNTS


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layers": [{}]}', '{"layers": [{"heads": 3}]}'])
def test_what_is_no_structure_is_refused(text):
    with pytest.raises(UserError, match="not a structure"):
        Structure.from_json(text)


@pytest.mark.parametrize("heads", [(1, 1), (2, 0), (-1, 0)])
def test_indices_must_ascend(heads):
    with pytest.raises(UserError, match="ascending"):
        LayerStructure(heads, ())


@pytest.mark.parametrize(
    "layer", [LayerStructure((4,), ()), LayerStructure((), (10,)), LayerStructure((), (), {"key": (0,)})]
)
def test_units_that_the_model_lacks_are_refused(layer):
    with pytest.raises(UserError, match="layer 1 has"):
        Structure((Structure.full(COUNTS).layers[0], layer)).check(COUNTS)


def test_emptied_layers_can_be_dropped():
    structure = Structure((LayerStructure((), ()), LayerStructure((0,), ())))
    assert [layer.dropped for layer in structure.without_empty_layers().layers] == [True, False]


def test_layer_dropping_keeps_whole_layers():
    counts = ModelShape(6, 8, 2, 4, 16).counts()
    assert layers_to_keep(6, 3, "top") == [0, 1, 2] and layers_to_keep(6, 3, "alternate") == [0, 2, 4]
    structure = keep_layers(counts, layers_to_keep(6, 2, "alternate"))
    assert [c.heads for c in structure.counts()] == [2, 0, 0, 2, 0, 0]
    with pytest.raises(UserError, match="1 to 6"):
        layers_to_keep(6, 0, "top")
