"""First-order pruning from the command line's settings to the delivered model: exact counts, rounds, resume."""

from itertools import pairwise

import pytest
import torch

from keepfrac.methods.taylor import TaylorPrune
from keepfrac.run import identity
from keepfrac.run.run import run

DEEP = (  # as deep and with as many heads as the original's model, else small
    "model.config.num_hidden_layers=12", "model.config.num_attention_heads=12", "model.config.hidden_size=48",
    "model.config.intermediate_size=96", "probe_steps=0", "method.score_rows=16",
)  # fmt: skip
BEFORE = ("method.begin=0", "method.settled_at=0")


@pytest.mark.parametrize(
    ("heads", "neurons", "overshot"), [(6, 48, 73), (4, 24, 50), (1, 8, 18)]
)  # what a guard against empty layers had made of 72, 48 and 12
@pytest.mark.parametrize(
    "more",
    [
        ("method.scope=family",),
        ("method.scope=layer",),
        ("method.allow_empty=true",),
        ("method.scope=family", "method.even=neurons"),
    ],
)
def test_counts_are_exact_where_the_original_overshot(composed, heads, neurons, overshot, more):
    cfg = composed(
        "method=taylor", "keep_frac=1", f"method.heads={heads}", f"method.neurons={neurons}",
        "method.iterations=4", "method.importance_from=logits", *DEEP, *more, "epochs=0",
    )  # fmt: skip
    kept = run(cfg)["kept"]
    assert sum(kept["layer_heads"]) == heads * 12 < overshot
    assert sum(kept["layer_ffn"]) == neurons * 12
    assert kept["achieved"] == pytest.approx(kept["asked"])
    if "method.even=neurons" in more:
        assert kept["layer_ffn"] == [neurons] * 12
        assert heads == 1 or len({*kept["layer_heads"]}) > 1
    if more == ("method.scope=layer",):
        assert kept["layer_heads"] == [heads] * 12 and kept["layer_ffn"] == [neurons] * 12
    if more == ("method.scope=family",):
        assert min(kept["layer_heads"]) >= 1 and all(count % 8 == 0 for count in kept["layer_ffn"])


def test_rounds_come_when_they_are_due_and_what_is_gone_stays_gone(composed, monkeypatch):
    seen = []
    original = TaylorPrune._round

    def round_(self):
        original(self)
        counts = [(s.heads, s.neurons) for s in self.structure.layers]
        seen.append((self.global_step + 1, counts))

    monkeypatch.setattr(TaylorPrune, "_round", round_)
    cfg = composed(
        "method=taylor", "keep_frac=0.4", "method.iterations=4", "method.begin=0.25", "method.settled_at=0.75",
        "method.score_rows=24", "steps=12", "probe_steps=0",
    )  # fmt: skip
    found = run(cfg)
    assert [step for step, _ in seen] == [3, 5, 7, 9]
    for (_, former), (_, later) in pairwise(seen):
        for before, after in zip(former, later, strict=True):
            assert all(set(kept) <= set(had) for had, kept in zip(before, after, strict=True))
    assert 0.38 < found["kept"]["achieved"] <= 0.4


def test_fine_tune_prune_and_recover_as_runs(composed):
    tuned = composed("method=nosp", "name=tuned", "epochs=1")
    run(tuned)
    cut = composed(
        "method=taylor", "keep_frac=0.5", *BEFORE, "name=cut", "epochs=1", "model=from_run",
        f"model.run={identity.cell(tuned).folder}",
    )  # fmt: skip
    found = run(cut)
    assert 0.48 < found["kept"]["achieved"] <= 0.5
    more = composed("method=nosp", "name=more", "model=from_run", f"model.run={identity.cell(cut).folder}", "epochs=1")
    assert run(more)["size"]["params"] == found["size"]["params"] < found["size"]["params_dense"]


def test_rows_are_scored_alike_at_any_batch_size(composed, monkeypatch):
    found = []
    original = TaylorPrune.scores

    def scores(self):
        found.append(original(self))
        return found[-1]

    monkeypatch.setattr(TaylorPrune, "scores", scores)
    for size in (4, 16):
        run(
            composed(
                "method=taylor",
                *BEFORE,
                "method.iterations=1",
                "epochs=0",
                f"batch_size={size}",
                "method.score_rows=40",
            )
        )
    for one, two in zip(found[0].heads + found[0].neurons, found[1].heads + found[1].neurons, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-8)
