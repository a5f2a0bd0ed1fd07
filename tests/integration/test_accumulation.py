"""The gradient of a step is that of one batch of all its rows, however many batches the rows came in."""

import pytest
import torch

from keepfrac.run.run import run
from keepfrac.training.finetune import FineTune
from tests.runs import Killed

STILL = ("model.dropout=0", "model.attention_dropout=0", "probe_steps=0", "method=nosp", "accumulate=4")


def gradients_of_first_step(cfg, monkeypatch) -> tuple[dict, dict]:
    """What the loop gives the optimizer in its first step, and what one batch of all training rows gives."""
    found = []

    def first_step(self, *_, **__):
        own = {name: p.grad.clone() for name, p in self.net.named_parameters() if p.grad is not None}
        self.zero_grad()
        data = self.task.encoded("train")
        batch = self.task.collate([data[i] for i in range(len(data))])
        self.task.loss(self.net(**self.task.inputs(batch)), batch).backward()
        found.extend([own, {name: p.grad for name, p in self.net.named_parameters() if p.grad is not None}])
        raise Killed

    monkeypatch.setattr(FineTune, "configure_gradient_clipping", first_step)
    with pytest.raises(Killed):
        run(cfg)
    return found[0], found[1]


def check_equal(own: dict, whole: dict) -> None:
    assert own.keys() == whole.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(own[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("batch_size", "rows"), [(32, 8), (32, 24), (16, 16)], ids=["one batch of four", "three of four", "four of four"]
)
def test_a_group_of_any_size_is_the_mean_of_its_rows(composed, monkeypatch, batch_size, rows):
    cfg = composed(*STILL, f"batch_size={batch_size}", f"task.rows={rows}")
    check_equal(*gradients_of_first_step(cfg, monkeypatch))


def test_of_masked_tokens_it_is_the_mean_over_tokens(masked, monkeypatch):
    check_equal(*gradients_of_first_step(masked(*STILL, "task.rows=16", "batch_size=16"), monkeypatch))


def test_of_generated_texts_it_is_the_mean_over_tokens(e2e, monkeypatch):
    check_equal(*gradients_of_first_step(e2e(*STILL, "task.rows=8"), monkeypatch))
