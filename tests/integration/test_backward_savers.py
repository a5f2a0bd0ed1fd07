"""What saves less for the backward pass: nothing stays behind, a resumed loop draws on, and what is refused."""

import copy
import io

import pytest
import torch

import keepfrac
from keepfrac.errors import UserError
from keepfrac.run.settings import check
from keepfrac.sparse.save_less import WAYS
from tests.tiny import inputs, tiny

WITH_NORMS = {"by": "wta", "gradient_norms": True}


def step(net):
    net.train()
    net(**inputs(), labels=torch.tensor([0, 1, 2])).loss.backward()


def hooks(net):
    return [
        hook for module in net.modules() for kept in (module._forward_hooks, module._forward_pre_hooks) for hook in kept
    ]


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize(
    "words", [*({"by": by} for by in WAYS), WITH_NORMS], ids=lambda words: "+".join(map(str, words.values()))
)
def test_no_hook_stays_behind(words, trained):
    net = tiny("bert", attention="sdpa")
    before = len(hooks(net))
    handle = keepfrac.save_less(net, **words)
    if trained:
        step(net)
    handle.restore()
    assert len(hooks(net)) == before
    step(net)


def test_a_resumed_loop_draws_by_the_norms_that_it_knew():
    net = tiny("bert", attention="sdpa", hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    twin = copy.deepcopy(net)
    handle, resumed = (keepfrac.save_less(one, **WITH_NORMS) for one in (net, twin))
    step(net)
    torch.save(handle.state(), file := io.BytesIO())
    file.seek(0)
    resumed.load_state(torch.load(file, weights_only=True))
    net.zero_grad()
    step(net), step(twin)
    pairs = [(p.grad, q.grad) for p, q in zip(net.parameters(), twin.parameters(), strict=True) if p.grad is not None]
    assert pairs and all(torch.equal(one, other) for one, other in pairs)
    assert handle.norms.table


@pytest.mark.parametrize("by", ["checkpoint", "recompute_gelu"])
def test_what_leaves_nothing_out_takes_no_share(shared, by):
    with pytest.raises(UserError, match=r"backward.keep_frac=0.3: .*must be 1"):
        keepfrac.save_less(tiny(), keep_frac=0.3, by=by)
    for group in ("backward", "method"):
        with pytest.raises(UserError, match=rf"{group}.keep_frac=0.3: .*must be 1"):
            check(shared(f"{group}={by}", f"{group}.keep_frac=0.3"))
    check(shared(f"method={by}", "keep_frac=0.3"))  # the common key says nothing to it


@pytest.mark.parametrize("on_before", [True, False])
def test_gradient_checkpointing_is_left_as_it_was(on_before):
    net = tiny("bert", attention="sdpa")
    if on_before:
        net.activation_checkpointing_enable()
    handle = keepfrac.save_less(net, by="checkpoint")
    assert net.is_activation_checkpointing
    handle.restore()
    assert net.is_activation_checkpointing == on_before


def test_a_model_that_cannot_be_checkpointed_is_refused():
    with pytest.raises(UserError, match=r"^checkpoint: a Linear has no gradient checkpointing"):
        keepfrac.save_less(torch.nn.Linear(2, 2), by="checkpoint")


@pytest.mark.parametrize("words", [("method=late",), ("method=nosp", "backward=late")])
def test_attention_scores_beside_late_are_refused_before_anything_is_loaded(shared, words):
    taught = ("distill=tinybert", "distill.teacher=nowhere")
    with pytest.raises(UserError, match=r"distill.w_att=1.0: .*set distill.w_att=0, or choose distill=hidden"):
        check(shared(*words, *taught))
    check(shared(*words, *taught, "distill.w_att=0"))
    check(shared("method=norm", *taught))
    check(shared(*words, "distill=tinybert"))  # no teacher, no scores
