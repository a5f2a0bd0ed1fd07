"""The options of the loop in whole runs: against a loop by hand, killed and resumed, on two processes, with methods."""

import pytest
import torch
from safetensors.torch import load_file

from keepfrac.errors import UserError
from keepfrac.models.load import load_net, load_tokenizer
from keepfrac.prune.masks import FILE, Masks, top_mask
from keepfrac.run import identity
from keepfrac.run.build import build_task
from keepfrac.run.run import run
from keepfrac.training.finetune import FineTune, warmup_then_linear
from keepfrac.training.options import by_depth
from tests.runs import weights_of

STILL = ("model.dropout=0", "model.attention_dropout=0", "probe_steps=0")
EACH = ("fgm=0.5", "ema=0.9", "r_drop=2.0", "layer_decay=0.7")


def by_hand(settings: dict) -> dict[str, torch.Tensor]:
    """A loop of torch alone that shifts the embeddings in place, takes the second gradient, and shifts them back."""
    import pytorch_lightning as pl

    torch.set_num_threads(1)
    pl.seed_everything(settings["seed"], verbose=False)
    tokenizer, task = load_tokenizer(settings["model"]), build_task(identity.check(settings))
    task.use(tokenizer)
    task.setup()
    net = load_net(settings["model"], task.head, task.labels, task.num_labels, len(tokenizer)).train()
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": settings["weight_decay"]},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [{**group, "lr": settings["lr"]} for group in groups]
    if settings["layer_decay"]:
        groups = by_depth(groups, net, settings["layer_decay"])
    rates = [group["lr"] for group in groups]
    optimizer = torch.optim.AdamW(groups, fused=True)
    words = net.bert.embeddings.word_embeddings.weight
    average = {name: p.detach().clone() for name, p in net.named_parameters()}
    batches = iter(task.train_dataloader())
    for step in range(settings["steps"]):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * warmup_then_linear(step / settings["steps"], settings["warmup"])
        for _ in range(settings["accumulate"]):
            batch = next(batches)
            inputs = {key: value for key, value in batch.items() if key != "labels"}

            def loss(inputs=inputs, labels=batch["labels"]):
                logits = net(**inputs).logits
                return torch.nn.functional.cross_entropy(logits, labels) / settings["accumulate"]

            before = torch.zeros_like(words) if words.grad is None else words.grad.clone()
            loss().backward()
            if settings["fgm"]:
                gradient, saved = words.grad - before, words.detach().clone()
                with torch.no_grad():
                    words.add_(settings["fgm"] * gradient / gradient.norm())
                loss().backward()
                with torch.no_grad():
                    words.copy_(saved)
        torch.nn.utils.clip_grad_norm_(net.parameters(), settings["clip"])
        optimizer.step()
        optimizer.zero_grad()
        decay = min(settings["ema"] or 0.0, (2 + step) / (11 + step))
        average = {name: decay * average[name] + (1 - decay) * p.detach() for name, p in net.named_parameters()}
    return average


@pytest.mark.parametrize(
    "options", [("fgm=0.5", "accumulate=2"), ("ema=0.9",), ("fgm=0.5", "ema=0.9", "layer_decay=0.7")]
)
def test_it_is_what_one_would_write_in_torch(composed, options):
    cfg = composed("method=nosp", *STILL, *options, "steps=3", "eval_every=3")
    run(cfg)
    expected = by_hand(identity.plain(cfg))
    for name, weight in weights_of(cfg).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=2e-6, msg=name)


def test_r_drop_adds_the_divergence_and_means_the_losses(composed, monkeypatch):
    seen = []
    original = FineTune.loss_of

    def loss_of(self, batch):
        total, terms = original(self, batch)
        seen.append({name: term.item() for name, term in terms.items()} | {"total": total.item()})
        return total, terms

    monkeypatch.setattr(FineTune, "loss_of", loss_of)
    cfg = composed("method=nosp", "r_drop=3.0", "model.dropout=0.3", "steps=3", "probe_steps=0")
    run(cfg)
    assert all(terms["r_drop"] > 0 for terms in seen)
    assert all(terms["total"] == pytest.approx(terms["task"] + terms["r_drop"]) for terms in seen)


def test_off_they_change_no_identity(composed):
    settings = identity.plain(composed("method=nosp"))
    former = {key: value for key, value in settings.items() if key not in ("fgm", "ema", "r_drop", "layer_decay")}
    assert identity.identify(settings) == identity.identify(former)
    on = {identity.cell(composed("method=nosp", option)).identity for option in EACH}
    assert len(on) == 4 and identity.identify(settings) not in on
    preset = composed("method=nosp", "regularize=fgm")
    assert identity.cell(preset).identity == identity.cell(composed("method=nosp", "fgm=1.0")).identity


@pytest.mark.parametrize(
    ("override", "allowed"),
    [("fgm=0", r"\(0, inf\)"), ("ema=1", r"\(0, 1\)"), ("r_drop=-1", r"\(0, inf\)"), ("layer_decay=1.5", r"\(0, 1\]")],
)  # fmt: skip
def test_a_bad_value_is_one_sentence(composed, override, allowed):
    with pytest.raises(UserError, match=rf"^{override.replace('=', '=')}: must be a number in {allowed}"):
        identity.check(identity.plain(composed(override)))


@pytest.mark.parametrize("option", ["fgm=1", "ema=0.9"])
def test_sharded_weights_are_refused(composed, option):
    with pytest.raises(UserError, match="must be null where a strategy shards"):
        identity.check(identity.plain(composed(option, "hardware=gpus_fsdp")))


def test_r_drop_without_dropout_ends_before_training(composed):
    with pytest.raises(UserError, match="this model has none"):
        run(composed("r_drop=1.0", *STILL))


def test_what_is_scored_while_training_is_what_is_delivered(composed):
    """The best validation score during the fit is that of the delivered average."""
    cfg = composed("method=nosp", "ema=0.9", "eval_every=6", "lr=3e-3", "probe_steps=0")
    found = run(cfg)
    lines = (identity.cell(cfg).folder / "metrics.csv").read_text().splitlines()
    scored = [float(line.split(",")[2]) for line in lines if ",val/loss," in line]
    assert any(score == pytest.approx(found["scores"]["val/loss"], abs=1e-6) for score in scores_in_fit(scored))


def scores_in_fit(scored: list[float]) -> list[float]:
    """All but the last one, which is that of the delivered model itself."""
    assert len(scored) > 1
    return scored[:-1]


def test_the_average_is_delivered_also_without_a_validation(composed):
    cfg = composed(*STILL, "method=nosp", "ema=0.9", "steps=4", "eval_every=40")
    run(cfg)
    expected = by_hand(identity.plain(cfg))
    for name, weight in weights_of(cfg).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("method", ["norm", "late", "l0"])
def test_every_method_takes_them_all(composed, method):
    found = run(composed(f"method={method}", *EACH, "steps=6", "hardware.precision=bf16-mixed", "keep_frac=0.5"))
    assert found["status"] == "done" and found["cost"]["steps"] == 6


@pytest.mark.parametrize("schedule", ["one_shot", "cubic"])
def test_sparse_updates_take_them_too_and_what_is_delivered_is_as_sparse_as_asked(composed, schedule):
    """All but the attack, since the word embeddings are frozen there."""
    chosen = ("method=lora_sparse", "method.rank=4", "method.sparse=8", f"method.schedule={schedule}")
    cfg = composed(*chosen, *EACH[1:], "method.score=w", "keep_frac=0.5", "steps=8", "eval_every=2")
    found = run(cfg)
    assert found["kept"]["achieved"] == pytest.approx(found["kept"]["asked"], abs=1e-3) == 0.5
    weights = weights_of(cfg)
    masks = load_file(identity.cell(cfg).folder / "model" / FILE)
    assert masks and all((weights[name][~mask] == 0).all() for name, mask in masks.items())


def test_zeros_of_masks_stay_zero_in_the_average_and_under_attack(composed):
    first = composed("method=nosp", "steps=2", "name=first", "probe_steps=0")
    run(first)
    folder = identity.cell(first).folder
    weights = load_file(folder / "model" / "model.safetensors")
    names = [name for name in weights if weights[name].ndim == 2 and ("encoder" in name or "word" in name)]
    Masks({n: top_mask(weights[n].abs(), weights[n].numel() // 4) for n in names}).save(folder / "model")
    cfg = composed(
        "method=nosp", "fgm=1", "ema=0.9", "steps=6", "model=from_run", f"model.run={folder}", "probe_steps=0"
    )
    run(cfg)
    after, masks = weights_of(cfg), load_file(identity.cell(cfg).folder / "model" / FILE)
    assert all((after[name][~mask] == 0).all() for name, mask in masks.items())
