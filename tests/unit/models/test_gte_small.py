"""The encoder of twelve layers: its yaml, and its weights where a folder of them is at hand (GTE_SMALL)."""

import os
from pathlib import Path

import pytest
import torch
import yaml

from keepfrac.models.cut import counts_of, cut, encoder_layers, largest_difference
from keepfrac.models.load import load_net, load_tokenizer
from keepfrac.prune.attach import attach, gates_of
from keepfrac.prune.structure import LayerCounts, LayerStructure, Structure

SETTINGS = yaml.safe_load((Path(__file__).resolve().parents[3] / "conf" / "model" / "gte_small.yaml").read_text())


@pytest.fixture(scope="module")
def weights() -> str:
    folder = os.environ.get("GTE_SMALL")
    if not folder:
        pytest.skip("GTE_SMALL names no folder: set it to your own copy of thenlper/gte-small")
    return folder


def load(**changes):
    return load_net(SETTINGS | changes, "sequence_classification", ("no", "yes"), 2, 100)


def test_the_real_weights_load_and_are_cut_exactly(weights):
    net, tokenizer = load(name=weights).eval(), load_tokenizer(SETTINGS | {"name": weights})
    assert counts_of(net) == [LayerCounts(12, 1536)] * 12
    inputs = dict(tokenizer(["a gripping film", "dull"], padding=True, return_tensors="pt"))
    half = LayerStructure(tuple(range(0, 12, 2)), tuple(range(0, 1536, 2)))
    structure = Structure((half,) * 10 + (LayerStructure((), half.neurons), LayerStructure(half.heads, ())))
    small = cut(net, structure)
    assert [c.heads for c in counts_of(small)] == [6] * 10 + [0, 6]
    with torch.no_grad():
        alone = net(**inputs).logits
        attach(net, encoder_layers(net), gates_of(structure, counts_of(net)))
        largest_difference(lambda b: net(**b).logits, lambda b: small(**b).logits, [inputs], 1e-4)
        assert (alone - small(**inputs).logits).abs().max() > 1e-4  # the cut says something
