"""From raw reports to a small classifier: vocabulary, pre-training, fine-tuning on several labels, a cut."""

import json
import random

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from keepfrac.errors import UserError
from keepfrac.methods.taylor import TaylorPrune
from keepfrac.run import identity
from keepfrac.run.run import run
from keepfrac.training.checkpoint_files import CHECKPOINT
from tests.integration.conftest import CONF
from tests.runs import killed_at

TINY = [
    "model=bert_small",
    "model.config.num_hidden_layers=2",
    "model.config.hidden_size=32",
    "model.config.num_attention_heads=2",
    "model.config.intermediate_size=64",
]
LABELS = tuple(str(label) for label in range(17))


def reports(count: int, first: int) -> list[str]:
    """A word's label is its number, where it has one: 20 words, 17 labels."""
    lines = []
    for number in range(first, first + count):
        draw = random.Random(number)
        words = [draw.randrange(40) for _ in range(draw.randint(3, 9))]
        found = sorted({word for word in words if word < 17})
        lines.append(f"{number}|,|{' '.join(f'w{w}' for w in words)} |,|{' '.join(map(str, found))}")
    return lines


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    for name, count, first in (("train", 200, 0), ("test", 30, 1000)):
        (folder / f"{name}.csv").write_text("\n".join(reports(count, first)) + "\n")
    return folder


@pytest.fixture(scope="module")
def stage(folder, tmp_path_factory):
    """A function from overrides to a resolved configuration of a run on the reports."""
    root = tmp_path_factory.mktemp("multirun")
    identity.register()

    def compose_(*overrides: str):
        base = ["logger=csv", "hardware.precision=32-true", "hardware.threads=1", "probe_steps=0"]
        base += ["batch_size=16", "lr=1e-2", "name=road", "steps=12", "eval_every=6"]
        with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(CONF), version_base="1.3"):
            patch.setenv("KEEPFRAC_MULTIRUN", str(root))
            patch.setenv("GAIIC_DATA", str(folder))
            return compose("config", overrides=[*base, *overrides])

    def run_(*overrides: str):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KEEPFRAC_MULTIRUN", str(root))
            patch.setenv("GAIIC_DATA", str(folder))
            cfg = compose_(*overrides)
            return run(cfg), identity.cell(cfg).folder

    run_.root = root
    return run_


MLM = ["task=mlm", "task@task.of=gaiic", *TINY]


@pytest.fixture(scope="module")
def pretrained(stage):
    return stage(*MLM, "task.span=2")


@pytest.fixture(scope="module")
def fine_tuned(stage, pretrained):
    return stage("task=gaiic", "model=from_run", f"model.run={pretrained[1]}", "steps=60", "eval_every=30")


def test_pre_training_delivers_the_vocabulary_and_its_perplexity(pretrained):
    results, folder = pretrained
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert len(tokenizer) == 45
    assert tokenizer("w3 w39 w40")["input_ids"].count(tokenizer.unk_token_id) == 1
    assert 1 < results["scores"]["test/perplexity"] < 60
    shape = load_file(folder / "model" / "model.safetensors")["bert.embeddings.word_embeddings.weight"].shape
    assert shape == (45, 32)
    logged = (folder / "metrics.csv").read_text()
    assert "train/perplexity" in logged and "train/loss" in logged and "val/perplexity" in logged
    data = results["provenance"]["data"]
    assert data["rows"]["train"] > 150 and data["of"] == "gaiic"


def test_fine_tuning_goes_on_with_the_same_words(pretrained, fine_tuned):
    results, folder = fine_tuned
    before, after = (AutoTokenizer.from_pretrained(path / "model") for path in (pretrained[1], folder))
    assert before.get_vocab() == after.get_vocab()
    scores = results["scores"]
    assert scores["val/legacy_one_minus_2mlogloss"] == pytest.approx(2 * scores["val/one_minus_mlogloss"] - 1, abs=1e-6)
    assert scores["test/temperature"] == scores["val/temperature"]
    assert scores["val/scaled_one_minus_mlogloss"] >= scores["val/one_minus_mlogloss"] - 1e-6
    assert scores["val/one_minus_mlogloss"] == pytest.approx(1 - scores["val/loss"], abs=1e-5)
    assert results["best_metric"] == "one_minus_mlogloss" and results["direction"] == "max"


def test_a_pipeline_gives_each_label_its_own_probability(fine_tuned):
    _, folder = fine_tuned
    config = json.loads((folder / "model" / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    classify = pipeline("text-classification", model=str(folder / "model"), top_k=None)
    (found,) = classify(["w3 w5"])
    assert {one["label"] for one in found} == set(LABELS)
    logits = classify.model(**classify.tokenizer("w3 w5", return_tensors="pt")).logits[0].sigmoid()
    shown = {one["label"]: one["score"] for one in found}
    assert [shown[label] for label in LABELS] == pytest.approx(logits.tolist(), abs=1e-6)


def test_the_fine_tuned_model_is_cut_and_evaluated(stage, fine_tuned):
    results, folder = stage(
        "task=gaiic", "method=magnitude", "keep_frac=0.5", "model=from_run", f"model.run={fine_tuned[1]}"
    )
    assert results["kept"]["achieved"] <= 0.5
    assert results["size"]["params"] < results["size"]["params_dense"]
    again, _ = stage("task=gaiic", "epochs=0", "steps=null", "model=from_run", f"model.run={folder}")
    for name in ("val/one_minus_mlogloss", "val/temperature", "test/scaled_one_minus_mlogloss", "test/map"):
        assert again["scores"][name] == pytest.approx(results["scores"][name], abs=1e-6)
    assert [one["task"] for one in results["provenance"]["stages"]] == ["mlm", "gaiic"]


def test_killed_pre_training_continues_bitwise(stage):
    """Step 15 is in the second epoch, whose masks are other ones."""
    overrides = [*MLM, "model.dropout=0.1", "checkpoint_every=2", "steps=20", "eval_every=8"]
    whole = stage(*overrides, "name=whole")
    for step in (5, 15):
        with killed_at(step):
            stage(*overrides, "name=broken")
        (broken,) = (stage.root / "broken").iterdir()
        assert (broken / CHECKPOINT).exists()
    again = stage(*overrides, "name=broken")
    weights, other = (load_file(folder / "model" / "model.safetensors") for _, folder in (whole, again))
    assert all(torch.equal(weights[name], other[name]) for name in weights)
    assert whole[0]["scores"] == again[0]["scores"]


def test_rows_of_masked_tokens_are_scored_alike_at_any_batch_size(stage, pretrained, monkeypatch):
    """They have 2 to 4 masked tokens: a mean over those of a batch would weigh a row by its company."""
    found = []
    original = TaylorPrune.scores
    monkeypatch.setattr(TaylorPrune, "scores", lambda self: found.append(original(self)) or found[-1])
    pruning = ["method=taylor", "keep_frac=0.5", "method.begin=0", "method.settled_at=0", "method.iterations=1"]
    going_on = ["model=from_run", f"model.run={pretrained[1]}", "epochs=0", "steps=null"]
    for size in (2, 20):
        sizes = [f"batch_size={size}", "method.score_rows=40", "task.mask_frac=0.5"]
        stage(*MLM[:2], *pruning, *going_on, *sizes)
    one, two = (scores.heads + scores.neurons for scores in found)
    for few, many in zip(one, two, strict=True):
        assert few.max() > 0
        torch.testing.assert_close(few, many, rtol=1e-3, atol=1e-7)


def test_a_pre_trained_model_loses_rare_words(stage, pretrained):
    going_on = ["model=from_run", f"model.run={pretrained[1]}", "epochs=0", "steps=null"]
    results, folder = stage(*MLM[:2], *going_on, "method=vocab", "method.min_count=25")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert 5 < len(tokenizer) == results["kept"]["tokens"] < 45
    weights = load_file(folder / "model" / "model.safetensors")
    assert len(weights["bert.embeddings.word_embeddings.weight"]) == len(tokenizer)
    assert len(weights["cls.predictions.bias"]) == len(tokenizer)
    assert 1 < results["scores"]["test/perplexity"] < 60


def test_a_model_that_has_read_the_fold_is_refused(stage, pretrained):
    with pytest.raises(UserError, match="all stages need the same folds and fold"):
        stage("task=gaiic", "task.folds=4", "task.fold=0", "model=from_run", f"model.run={pretrained[1]}")


def test_a_fold_goes_the_whole_road_alone(stage):
    folds = ["folds=4", "fold=2"]
    of = [f"task.of.{one}" for one in folds]
    before, folder = stage(*MLM, *of, "steps=2", "eval_every=2")
    assert before["provenance"]["data"]["splits"].count("fold 2 of 4") == 1
    own = [f"task.{one}" for one in folds]
    after, _ = stage("task=gaiic", *own, "model=from_run", f"model.run={folder}", "steps=2", "eval_every=2")
    rows = after["provenance"]["data"]["rows"]
    assert sum(rows.values()) == 200 and rows["test"] > 30


def test_r_drop_says_before_training_that_it_is_not_for_masked_tokens(stage, monkeypatch):
    monkeypatch.setattr("keepfrac.training.finetune.FineTune.training_step", lambda *_: pytest.fail("it trained"))
    with pytest.raises(UserError, match="r_drop on a task of masked_lm"):
        stage(*MLM, "r_drop=1.0")


def test_a_vocabulary_beside_loaded_weights_is_refused(stage, pretrained):
    with pytest.raises(UserError, match="random weights only"):
        stage(
            "task=gaiic",
            "model=from_run",
            f"model.run={pretrained[1]}",
            "model.tokenizer={kind: words, size: 100, min_count: 1, lowercase: false}",
        )


def test_the_place_of_the_reports_is_no_part_of_a_cell(stage, folder, pretrained):
    before = {path.name for path in pretrained[1].parent.iterdir()}
    results, again = stage(*MLM, "task.span=2", f"task.of.data_dir={folder}", "task.of.eval_batch_size=7")
    assert again == pretrained[1] and results["identity"] == pretrained[0]["identity"]
    assert {path.name for path in pretrained[1].parent.iterdir()} == before


def test_pieces_in_place_of_words(stage, pretrained):
    changes = ["model.tokenizer.kind=wordpiece", "model.tokenizer.size=30", "steps=2", "eval_every=1"]
    results, folder = stage(*MLM, *changes)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert len(tokenizer) <= 30 and "##1" in tokenizer.get_vocab()
    assert results["status"] == "done"


def test_the_originals_model_has_the_originals_size():
    """102,281,233 as it was printed, of which 512 were a buffer of positions."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = dict(compose("config", overrides=["experiment=gaiic_original_pretrain"]).model.config)
    with torch.device("meta"):
        net = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**config, num_labels=17))
    assert net.num_parameters() == 102_281_233 - 512
