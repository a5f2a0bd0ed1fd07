"""Fidelity on real weights, tokens and gradients: MiniLM after some steps on film reviews, dropout off."""

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from keepfrac.errors import DataMissing
from keepfrac.storage.archives import minilm_folder, movie_reviews
from tests.unit.sparse.act8bit.nets import converted

DROPOUT_OFF = {"num_labels": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture(scope="module")
def trained():
    """Weights after a few dense steps, and a batch that they have not seen."""
    try:
        folder, (texts, labels) = minilm_folder(), movie_reviews()
    except DataMissing as error:
        pytest.skip(str(error))
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def batch(number, rows=32):
        part = slice(number * rows, (number + 1) * rows)
        data = tokenizer(list(texts[part]), padding=True, truncation=True, max_length=48, return_tensors="pt")
        return {**data, "labels": torch.tensor([int(label) for label in labels[part]])}

    torch.manual_seed(0)
    net = AutoModelForSequenceClassification.from_pretrained(folder, **DROPOUT_OFF).train()
    optimizer = torch.optim.AdamW(net.parameters(), 5e-5)
    for number in range(1, 6):
        optimizer.zero_grad()
        net(**batch(number)).loss.backward()
        optimizer.step()
    return folder, net.state_dict(), batch(0), measure(net, batch(0))


def measure(net, data):
    """The gradient to the embeddings' output, and those of the linears' weights."""
    seen = []
    hook = net.bert.embeddings.register_forward_hook(lambda module, args, out: seen.append(out) or out.retain_grad())
    net.zero_grad()
    net(**data).loss.backward()
    hook.remove()
    weights = {name: p.grad.clone() for name, p in net.named_parameters() if "encoder" in name and p.dim() == 2}
    return seen[0].grad, weights


def cosine(a, b):
    a, b = a.flatten().double(), b.flatten().double()
    return (a @ b / (a.norm() * b.norm())).item()


@pytest.mark.parametrize(("rows", "keep_frac", "least"), [("wta", 1.0, 0.999), ("wta", 0.3, 0.92), ("grad", 0.3, 0.92)])
def test_fidelity(trained, rows, keep_frac, least):
    folder, weights, data, (d_input, dense) = trained
    net = AutoModelForSequenceClassification.from_pretrained(folder, **DROPOUT_OFF).train()
    net.load_state_dict(weights)
    handle = converted(net, keep_frac, rows=rows, store="8bit", skip_zero_rows=True)
    got_input, got = measure(net, data)
    assert (got_input - d_input).norm() / d_input.norm() < 0.012
    assert sum(cosine(got[name], dense[name]) for name in dense) / len(dense) > least
    assert handle.kept()["achieved"] <= keep_frac + 0.01
