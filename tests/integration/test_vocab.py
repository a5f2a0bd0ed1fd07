"""Vocabulary pruning from the command line's settings to the delivered folder."""

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from keepfrac.run import identity
from keepfrac.run.run import run


def model_of(cfg):
    return identity.cell(cfg).folder / "model"


def test_the_delivered_folder_has_the_pruned_tokenizer_and_scores_as_before(composed):
    tuned = composed("method=nosp", "name=tuned", "epochs=1")
    whole = run(tuned)
    cfg = composed("method=vocab", "epochs=0", "model=from_run", f"model.run={identity.cell(tuned).folder}")
    found = run(cfg)
    tokenizer = AutoTokenizer.from_pretrained(model_of(cfg))
    net = AutoModelForSequenceClassification.from_pretrained(model_of(cfg))
    rows = len(net.get_input_embeddings().weight)
    assert len(tokenizer) == rows == net.config.vocab_size == found["kept"]["tokens"] < 200
    assert found["kept"]["asked"] <= found["kept"]["achieved"] == rows / 30522
    assert found["kept"]["embedding_params_before"] == 30522 * 128
    assert found["size"]["params_dense"] - found["size"]["params"] == (30522 - rows) * 128
    assert found["kept"]["logits_moved_by"] == 0.0
    assert found["scores"] == whole["scores"]  # all words of validation and test stand in train
    classify = pipeline("text-classification", model=str(model_of(cfg)))
    assert classify("the film was lovely")[0]["label"] in ("good", "bad")


def test_on_training_texts_the_logits_are_those_of_the_whole_model(composed, csv_folder):
    tuned = composed("method=nosp", "name=tuned", "steps=2")
    run(tuned)
    cfg = composed("method=vocab", "epochs=0", "model=from_run", f"model.run={identity.cell(tuned).folder}")
    run(cfg)
    texts = [line.split(",")[0] for line in (csv_folder / "train.csv").read_text().splitlines()[1:]]
    logits = []
    for folder in (model_of(tuned), model_of(cfg)):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        net = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        with torch.no_grad():
            logits.append(net(**tokenizer(texts, padding=True, return_tensors="pt")).logits)
    assert torch.equal(*logits)


def test_it_trains_measures_and_goes_on_by_other_methods(composed):
    first = composed("method=vocab", "name=first", "epochs=1", "method.min_count=3", "method.characters=false")
    found = run(first)
    assert (
        found["cost"]["saved_bytes"] > 0 and "kept/tokens" in (identity.cell(first).folder / "metrics.csv").read_text()
    )
    then = composed(
        "method=magnitude", "keep_frac=0.5", "name=then", "epochs=1", "model=from_run",
        f"model.run={identity.cell(first).folder}",
    )  # fmt: skip
    cut = run(then)
    assert (
        cut["size"]["params_dense"] == found["size"]["params_dense"] > found["size"]["params"] > cut["size"]["params"]
    )
    again = composed(
        "method=vocab", "epochs=0", "name=again", "model=from_run", f"model.run={identity.cell(then).folder}"
    )
    last = run(again)
    assert last["kept"]["of"] == "30522 tokens" and last["size"]["params_dense"] == found["size"]["params_dense"]
    assert (
        AutoTokenizer.from_pretrained(model_of(again)).get_vocab()
        == AutoTokenizer.from_pretrained(model_of(then)).get_vocab()
    )
