import pytest
import torch

from keepfrac.models.anatomy import anatomy
from keepfrac.models.attention_scores import ATTRIBUTE, recorded
from tests.tiny import inputs, tiny


def paths(net) -> dict[int, str]:
    return {number: layer.attention for number, layer in enumerate(anatomy(net).layers, start=1)}


def from_linears(net, batch) -> list[torch.Tensor]:
    """Q K^T / sqrt(d) from the outputs of the linears, by hooks: an independent way."""
    caught: dict[str, torch.Tensor] = {}
    layers = anatomy(net).layers
    handles = [
        net.get_submodule(path).register_forward_hook(lambda m, i, out, path=path: caught.__setitem__(path, out))
        for layer in layers
        for path in (layer.query, layer.key)
    ]
    net(**batch)
    for handle in handles:
        handle.remove()
    split = {path: out.unflatten(2, (-1, layers[0].head_dim)).transpose(1, 2) for path, out in caught.items()}
    return [split[one.query] @ split[one.key].mT / one.head_dim**0.5 for one in layers]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_scores_are_those_before_the_softmax_and_outputs_stay(family, attention):
    net, batch = tiny(family, attention=attention), inputs()
    plain = net(**batch).logits
    with recorded(net, paths(net)) as scores:
        logits = net(**batch).logits
    assert torch.equal(logits, plain)
    assert list(scores) == [1, 2, 3]
    for own, expected in zip(scores.values(), from_linears(net, batch), strict=True):
        torch.testing.assert_close(own, expected)
    assert net.config._attn_implementation == attention
    assert not any(hasattr(module, ATTRIBUTE) for module in net.modules())


def test_eager_probabilities_are_their_softmax():
    net, batch = tiny(attention="eager"), inputs()
    with recorded(net, paths(net)) as scores:
        pass
    probabilities = net(**batch, output_attentions=True).attentions
    with recorded(net, paths(net)) as scores:
        net(**batch)
    closed = (batch["attention_mask"] == 0)[:, None, None, :]
    for own, expected in zip(scores.values(), probabilities, strict=True):
        torch.testing.assert_close(own.masked_fill(closed, float("-inf")).softmax(-1), expected)


def test_an_error_inside_leaves_the_model_as_it_was():
    net = tiny()
    with pytest.raises(RuntimeError, match="stop"), recorded(net, paths(net)):
        raise RuntimeError("stop")
    assert net.config._attn_implementation == "eager"
    assert not any(hasattr(module, ATTRIBUTE) for module in net.modules())


def test_scores_have_gradients():
    net = tiny(attention="sdpa")
    with recorded(net, paths(net)) as scores:
        net(**inputs())
    scores[2].square().mean().backward()
    assert net.bert.encoder.layer[1].attention.self.query.weight.grad.abs().sum() > 0
    assert net.bert.encoder.layer[2].attention.self.query.weight.grad is None
