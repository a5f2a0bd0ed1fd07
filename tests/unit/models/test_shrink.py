"""A stock model in a plain loop: cut once or in rounds, or its weights masked."""

import inspect

import pytest
import torch

import keepfrac
from keepfrac.errors import UserError
from keepfrac.models.cut import counts_of, shape_of
from keepfrac.prune.cost import MacsCost, ParamsCost, fraction
from tests.tiny import DECODERS, inputs, tiny

LABELS = torch.tensor([0, 1, 2])
BATCH = {**inputs(), "labels": LABELS}


def share(net, cost=ParamsCost):
    return float(fraction(cost(shape_of(net)) if cost is ParamsCost else cost(shape_of(net), 128), counts_of(net)))


def trained(net, count=2, **options):
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2, **options)
    for _ in range(count):
        net.train()(**BATCH).loss.backward()
        optimizer.step(), optimizer.zero_grad()
    return net.eval()


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", *DECODERS])
@pytest.mark.parametrize("by", ["taylor", "magnitude", "random", "layers"])
def test_what_is_asked_is_left(family, by):
    net = tiny(family)
    labels = inputs()["input_ids"] if family in DECODERS else LABELS
    before = net(**inputs()).logits.detach()
    small = keepfrac.prune(net, [{**inputs(), "labels": labels}], 0.5, by=by, align={"neurons": 1})
    assert 0.3 < share(small) <= 0.5
    assert small(**inputs()).logits.shape == before.shape and not small.training
    assert torch.equal(net(**inputs()).logits, before)  # the model itself is not changed


def test_rounds_train_in_between_and_end_at_what_is_asked():
    seen = []

    def train(net):
        seen.append(share(net))
        trained(net, 1)

    small = keepfrac.prune(tiny(), [BATCH], keep_frac=0.4, rounds=3, train=train, align={"neurons": 1})
    assert [round(one, 1) for one in seen] == [0.8, 0.6, 0.4] and share(small) == seen[-1]
    assert trained(small)(**inputs()).logits.isfinite().all()


def test_a_share_of_macs_and_a_loss_of_one_s_own():
    net = tiny()
    ours = keepfrac.prune(net, [BATCH], 0.6, cost="macs", length=128)
    assert 0.5 < share(ours, MacsCost) <= 0.6
    own = keepfrac.prune(net, [inputs()], 0.6, cost="macs", loss=lambda model, batch: model(**batch).logits[:, 0].sum())
    other = keepfrac.prune(
        net, [inputs()], 0.6, cost="macs", loss=lambda model, batch: model(**batch).logits[:, 1].sum()
    )
    names = [name for name, one in own.named_parameters() if one.shape != dict(other.named_parameters())[name].shape]
    assert names or not all(map(torch.equal, own.parameters(), other.parameters()))


def test_nothing_goes_where_everything_stays():
    net = tiny()
    assert keepfrac.prune(net, [BATCH], keep_frac=1.0) is net


def test_the_package_of_that_name_is_the_function_too():
    import keepfrac.prune.masks  # a package once it was imported

    assert callable(keepfrac.prune) and keepfrac.prune.masks.Masks
    assert list(inspect.signature(keepfrac.prune).parameters)[:4] == ["model", "batches", "keep_frac", "by"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"by": "luck"}, "by=luck: must be one of taylor, magnitude"),
        ({"keep_frac": 0}, r"keep_frac=0: must be a number in \(0, 1\]"),
        ({"keep_frac": 0.001, "by": "magnitude"}, "cannot be reached"),
        ({"keep_frac": 0.01, "by": "layers"}, "by whole layers: it can be 0.3333"),
        ({"batches": ()}, "it needs batches"),
        ({"batches": [inputs()]}, "no labels"),
        ({"rounds": 0}, "rounds=0"),
        ({"cost": "watts"}, "cost=watts"),
        ({"scope": "row"}, "scope=row"),
    ],
)
def test_what_cannot_be_is_said(words, said):
    with pytest.raises(UserError, match=said):
        keepfrac.prune(tiny(), **{"batches": [BATCH], **words})


@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_masked_weights_stay_zero_while_the_rest_learns(scope):
    net = tiny()
    handle = keepfrac.mask_weights(net, 0.25, scope=scope)
    assert handle.kept()["achieved"] == pytest.approx(0.25, abs=1e-3) and handle.kept()["asked"] == 0.25
    before = {name: net.get_parameter(name).detach().clone() for name, _ in handle.masks.items()}
    trained(net, weight_decay=0.1)
    for name, mask in handle.state().items():
        weight = net.get_parameter(name)
        assert not weight[~mask].any() and not torch.equal(weight[mask], before[name][mask])
    assert sum(row["kept"] for row in handle.report()) == handle.masks.counts()[0]
    handle.restore()
    assert any(bool(net.get_parameter(name)[~mask].any()) for name, mask in handle.state().items() if trained(net))
