"""A family whose attention does not ask Transformers for its function: nothing watches it in vain."""

from dataclasses import replace

import pytest
from transformers import MPNetConfig, MPNetForSequenceClassification

from keepfrac.distillation.distiller import Distiller
from keepfrac.distillation.recipe import Recipe
from keepfrac.errors import UserError
from keepfrac.models.anatomy import anatomy
from keepfrac.models.attention_scores import recorded
from keepfrac.models.families import FAMILIES
from keepfrac.sparse.convert import sparsify
from keepfrac.sparse.selection.selectors import Selector
from tests.tiny import inputs, tiny
from tests.unit.distillation.test_losses import GOOD

SELECTOR = Selector(0.5, rule="random")
RECIPE = GOOD | {"w_rep": 0.0, "w_cls": 0.0}


@pytest.fixture(params=[True, False], ids=["the model says so", "the table says so"])
def mpnet(request, monkeypatch):
    """MPNet, as if nothing could make it ask; the row first believes that it goes through the interface."""
    monkeypatch.setattr("keepfrac.models.own_attention.ASKING", {})
    monkeypatch.setitem(FAMILIES, "mpnet", replace(FAMILIES["mpnet"], attention_interface=request.param))
    monkeypatch.setattr(MPNetForSequenceClassification, "_supports_attention_backend", not request.param, raising=False)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
    return MPNetForSequenceClassification(MPNetConfig(**sizes, vocab_size=60, num_labels=3)).train()


@pytest.mark.parametrize("site", ["attention", "softmax"])
def test_attention_sites_are_refused_by_name(mpnet, site):
    with pytest.raises(UserError, match=rf"site {site}: the attention of a mpnet model .*leave the site out"):
        sparsify(mpnet, ("linear", site), SELECTOR, 0)


def test_its_linears_are_sites_like_others(mpnet):
    handle = sparsify(mpnet, ("linear",), SELECTOR, 0)
    mpnet(**inputs()).logits.sum().backward()
    handle.check()
    assert 0.4 < handle.kept()["achieved"] < 0.6


def test_scores_are_refused_by_name(mpnet):
    paths = {0: anatomy(mpnet).layers[0].attention}
    with pytest.raises(UserError, match="attention of a mpnet model"), recorded(mpnet, paths):
        pass


@pytest.mark.parametrize("teaches", [True, False])
def test_distillation_of_attention_is_refused_before_the_first_step(mpnet, teaches):
    pair = (mpnet, tiny()) if teaches else (tiny(), mpnet)
    with pytest.raises(UserError, match=r"attention of a mpnet model .*distill\.w_att=0"):
        Distiller(*pair, Recipe(**RECIPE))


def own_attention(module):
    """Makes an attention compute by itself, whatever its class says."""
    module.forward = lambda hidden_states, *args, **kwargs: (hidden_states, None)


def test_a_score_that_was_not_recorded_is_an_error():
    student = tiny()
    distiller = Distiller(tiny(), student, Recipe(**RECIPE))
    own_attention(student.bert.encoder.layer[1].attention.self)
    with pytest.raises(UserError, match=r"no attention scores came from bert\.encoder\.layer\.1\.attention\.self:"):
        distiller(student.train(), inputs())


def test_an_attention_site_that_saved_nothing_is_an_error():
    net = tiny().train()
    handle = sparsify(net, ("linear", "attention"), SELECTOR, 0)
    own_attention(net.bert.encoder.layer[1].attention.self)
    net(**inputs()).logits.sum().backward()
    with pytest.raises(UserError, match=r"saved nothing in the first step: bert\.encoder\.layer\.1\.attention"):
        handle.check()


def test_attention_sites_that_keep_everything_have_nothing_to_save():
    net = tiny().train()
    handle = sparsify(net, ("linear", "attention"), replace(SELECTOR, keep_frac=1.0), 0)
    net(**inputs()).logits.sum().backward()
    handle.check()
