"""The laws that every encoder of the table of families keeps: a new row is held to them without an edit.

A cut model is its masked self and loads where the project is not installed; low-rank updates are PEFT's; `late` with
everything kept exactly is autograd; attention that is made to ask for its function computes what it did.
"""

import copy

import pytest
import torch
from torch import nn

from keepfrac.adapters.peft_folder import write_peft
from keepfrac.adapters.surgery import attach
from keepfrac.errors import UserError
from keepfrac.measurement.costs import macs
from keepfrac.measurement.parts import LENGTH, parts
from keepfrac.models.anatomy import anatomy
from keepfrac.models.attention_scores import recorded
from keepfrac.models.cut import counts_of, cut, encoder_layers, largest_difference
from keepfrac.models.export import stock_padded
from keepfrac.models.families import FAMILIES
from keepfrac.models.own_attention import asking, can_ask
from keepfrac.models.pruned import STOCK_OF
from keepfrac.models.targets import targets_of
from keepfrac.prune.attach import attach as attach_gates
from keepfrac.prune.attach import gates_of
from keepfrac.prune.structure import LayerStructure, Structure
from keepfrac.sparse.act8bit import Act8bit
from tests.tiny import inputs, tiny
from tests.unit.models.elsewhere import all_logits_elsewhere

VARIANTS = {  # of a family: what its models are also like
    "deberta-v3": ("deberta-v2", {"share_att_key": True}),
    "deberta-v2-conv": ("deberta-v2", {"conv_kernel_size": 3, "norm_rel_ebd": "none", "pos_att_type": ["p2c"]}),
}
ENCODERS = [name for name, row in FAMILIES.items() if not row.causal]
ROWS = {name: FAMILIES[VARIANTS.get(name, (name,))[0]] for name in (*ENCODERS, *VARIANTS)}
CUTTABLE = [name for name, row in ROWS.items() if row.removed]
# RMSNorms and rotations are in fp32 in any model: those have a law of their own, with its tolerance
LATE = [name for name, row in ROWS.items() if row.rms_norm is None and not row.rotary]
OWN_ATTENTION = [name for name, row in ROWS.items() if not row.attention_interface]
ALL = LayerStructure((0, 1, 2, 3), tuple(range(48)))
STRUCTURES = {
    "units": (LayerStructure((1, 3), (0, 5, 40)), ALL, LayerStructure((2,), (7,))),
    "sub-layers": (LayerStructure((), (2, 3)), LayerStructure((0, 3), ()), LayerStructure((), ())),
    "layers": (ALL, LayerStructure((), (), {}, dropped=True), LayerStructure((1, 2), (4, 9))),
}
AGAIN = Structure((LayerStructure((1,), (0, 2)), LayerStructure((0, 2, 3), (5,)), LayerStructure((0,), ())))


def small(name, head=None, **config):
    """A tiny model of a family or of a variant, without dropout."""
    family, more = VARIANTS.get(name, (name, {}))
    net = tiny(family, head, **more, **config)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return net


def logits(net):
    return lambda batch: net(**batch).logits


def gradients(net, batch):
    net.train().zero_grad()
    net(**batch).logits.square().sum().backward()
    return {name: parameter.grad for name, parameter in net.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", CUTTABLE)
@pytest.mark.parametrize("kind", STRUCTURES)
def test_a_cut_model_is_its_masked_self(name, kind):
    net, structure = small(name), Structure(STRUCTURES[kind])
    whole = logits(net)(inputs())
    once = cut(net, structure)
    attach_gates(net, encoder_layers(net), gates_of(structure, counts_of(net)))
    largest_difference(logits(net), logits(once), [inputs(), inputs(1, 4)], 1e-5)
    assert (logits(net)(inputs()) - whole).abs().max() > 1e-2  # the masks do something
    if kind == "units":
        twice = cut(once, AGAIN)
        attach_gates(once, encoder_layers(once), gates_of(AGAIN, counts_of(once)))
        largest_difference(logits(once), logits(twice), [inputs()], 1e-5)


@pytest.mark.parametrize("name", CUTTABLE)
def test_a_padded_model_computes_what_the_cut_one_does(name):
    first_ones = (LayerStructure((0, 1), (0, 5, 40)), LayerStructure((), (2, 3)), LayerStructure((0,), ()))
    once = cut(small(name), Structure(first_ones))
    padded = stock_padded(once)
    assert type(padded) is STOCK_OF[type(once)]
    largest_difference(logits(once), logits(padded), [inputs()], 1e-5)


def test_heads_whose_place_counts_are_not_padded():
    with pytest.raises(UserError, match="a pruned_mpnet has a bias for the place of each head"):
        stock_padded(cut(small("mpnet"), Structure(STRUCTURES["units"])))


@pytest.mark.parametrize("name", CUTTABLE)
def test_recorded_scores_are_those_behind_the_probabilities(name):
    net, batch = small(name), inputs()
    paths = {number: layer.attention for number, layer in enumerate(anatomy(net).runs, start=1)}
    with recorded(net, paths) as scores:
        recording = net(**batch).logits
    plain = net(**batch, output_attentions=True)
    torch.testing.assert_close(recording, plain.logits)
    real = batch["attention_mask"].bool()
    closed, read = ~real[:, None, None, :], real[:, None, :, None]  # what padding itself attends to is nobody's concern
    for own, expected in zip(scores.values(), plain.attentions, strict=True):
        found = own.masked_fill(closed, float("-inf")).softmax(-1)
        near = expected > 0  # not outside of a window
        found = found.masked_fill(~near, 0) / found.masked_fill(~near, 0).sum(-1, keepdim=True)
        torch.testing.assert_close(found * read, expected * read, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ROWS)
def test_parameters_and_operations_are_counted_by_part_and_nothing_is_left_out(name):
    net = small(name, max_position_embeddings=140)
    rows = {row["part"]: row for row in parts(net)}
    assert sum(row["params"] for row in rows.values()) == sum(one.numel() for one in net.parameters())
    assert sum(row["macs"] for row in rows.values()) == macs(net, LENGTH)
    assert rows["attention"]["params"] >= 4 * 32 * 16 and rows["attention"]["macs"] and rows["feed-forward"]["macs"]
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("name", OWN_ATTENTION)
def test_attention_that_is_made_to_ask_computes_what_it_did(name):
    net = small(name).double()
    paths = [layer.attention for layer in anatomy(net).layers]
    kinds = [type(net.get_submodule(path)) for path in paths]
    assert all(can_ask(net.get_submodule(path)) for path in paths)
    plain = logits(net)(inputs()), gradients(net, inputs())
    with asking(net, paths):
        assert [type(net.get_submodule(path)) for path in paths] != kinds
        found = logits(net)(inputs()), gradients(net, inputs())
    assert [type(net.get_submodule(path)) for path in paths] == kinds
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # PEFT asks for it
@pytest.mark.parametrize("name", ENCODERS)
def test_low_rank_updates_are_pefts(name, tmp_path):
    peft = pytest.importorskip("peft")
    net = small(name)
    theirs = copy.deepcopy(net)
    attach(net, targets_of(net, ["query", "value", "attention_output", "ffn_in", "ffn_out"]), rank=3, scale=2.0)
    with torch.no_grad():
        for parameter in (one for key, one in net.named_parameters() if ".updates." in key):
            parameter.normal_(std=0.1)
    theirs = peft.PeftModel.from_pretrained(theirs, write_peft(net, tmp_path, "base")).eval()
    torch.testing.assert_close(net(**inputs()).logits, theirs(**inputs()).logits, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LATE)
def test_late_with_everything_kept_exactly_is_autograd(name):
    net = small(name).double()
    want = gradients(net, inputs())
    exact = {"name": "late", "keep_frac": 1.0, "rows": "wta", "store": "exact", "context": "save"}
    settings = Act8bit.Settings(**exact, skip_zero_rows=False, kernels="torch", selection_seed=0)
    Act8bit(settings).attach(net)
    found = gradients(net, inputs())
    assert found.keys() == want.keys()
    torch.testing.assert_close(found, want, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_cut_models_load_and_compute_the_same_where_the_project_is_not_installed(tmp_path):
    nets = {name: cut(small(name), Structure(STRUCTURES["sub-layers"])) for name in CUTTABLE}
    folders = {tmp_path / name: tmp_path / f"{name}-again" for name in nets}
    for name, net in nets.items():
        net.save_pretrained(tmp_path / name)
    found = all_logits_elsewhere(folders, "AutoModelForSequenceClassification")
    for (name, net), elsewhere in zip(nets.items(), found, strict=True):
        torch.testing.assert_close(elsewhere, net(**inputs()).logits, rtol=1e-6, atol=1e-6, msg=name)
