"""A configuration that disagrees with its weights, or with what is trained, is one line."""

import json

import pytest

from keepfrac.errors import UserError
from keepfrac.models.families import FAMILIES
from keepfrac.models.load import load_net
from tests.tiny import tiny
from tests.unit.models.test_load import settings

ENCODERS = [name for name, row in FAMILIES.items() if not row.causal]


def load(folder):
    return load_net(
        settings(name=str(folder), config=None, attention="eager"), "sequence_classification", ("a", "b", "c"), 3, 60
    )


def saved(folder, family="bert", **said):
    tiny(family).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | said
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("family", "said", "match"),
    [
        ("bert", {"intermediate_size": 64}, r"intermediate\.dense\.bias \(48,\), not \(64,\).* and \d+ more$"),
        ("deberta-v2", {"position_buckets": 8}, r"rel_embeddings\.weight \(8, 32\), not \(16, 32\)$"),
        ("modernbert", {"intermediate_size": 40}, r"mlp\.Wi\.weight \(96, 32\), not \(80, 32\)"),
        ("bert", {"num_hidden_layers": 2}, r"its weights are of 3 layers, and config\.json says num_hidden_layers=2$"),
        ("albert", {"num_hidden_groups": 2}, r"its weights are of 3 layers, and .* num_hidden_groups=2$"),
        ("bert", {"num_hidden_layers": 4}, r"missing or have another shape .*layer\.3\."),
    ],
)
def test_sizes_that_are_not_those_of_the_weights(family, said, match, tmp_path):
    with pytest.raises(UserError, match=match):
        load(saved(tmp_path, family, **said))


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "electra", "camembert"])
def test_an_encoder_that_is_set_up_as_a_decoder(family, tmp_path):
    with pytest.raises(UserError, match=rf"a {family} is trained as an encoder, .*set is_decoder to false"):
        load(saved(tmp_path, family, is_decoder=True))


@pytest.mark.parametrize("family", ENCODERS)
def test_a_bare_encoder_gets_a_new_head_and_nothing_else(family, tmp_path):
    whole = tiny(family)
    whole.base_model.save_pretrained(tmp_path)
    net = load(tmp_path)
    body = dict(whole.base_model.named_parameters())
    kept = dict(net.base_model.named_parameters())
    assert all((kept[name] == tensor).all() for name, tensor in body.items() if name in kept) and len(kept) >= len(body)
