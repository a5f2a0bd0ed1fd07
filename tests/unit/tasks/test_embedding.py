"""Vectors of texts: pooling, losses and rankings against sentence-transformers and plain loops; what is delivered."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import normalize

from keepfrac.errors import UserError
from keepfrac.tasks.contrastive import _sharing
from keepfrac.tasks.metrics.retrieval import NAMES, RetrievalScores, ranking_scores

PAIRS = [("red door", "the red door"), ("two apples", "apples"), ("song", "a good song"), ("red door", "it is red")]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"text": a, "text_pair": b}) for a, b in PAIRS) + "\n")
    return str(path)


@pytest.fixture
def scored(tmp_path):
    path = tmp_path / "scored.jsonl"
    rows = [{"text": a, "text_pair": b, "score": 0.5 * i} for i, (a, b) in enumerate(PAIRS)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return str(path)


def files(path):
    """The file as training set, and with another last row as the two others."""
    *lines, last = Path(path).read_text().splitlines()
    found = {"train_file": path}
    for split in ("validation", "test"):
        other = Path(path).with_name(f"{split}.jsonl")
        other.write_text("\n".join([*lines, json.dumps(json.loads(last) | {"text": split})]) + "\n")
        found[f"{split}_file"] = str(other)
    return found


def batch_of(task, tokenizer):
    task.use(tokenizer)
    data = task.encoded("train")
    batch = task.collate([data[i] for i in range(len(PAIRS))])
    hidden = torch.randn(*batch["input_ids"].shape, 8, generator=torch.Generator().manual_seed(0))
    return batch, SimpleNamespace(last_hidden_state=hidden)


def test_pooling_is_that_of_sentence_transformers(make_task, pairs, tokenizer):
    layers = pytest.importorskip("sentence_transformers.models")
    for kind in ("mean", "cls"):
        task = make_task("embedding", **files(pairs), pooling=kind)
        batch, outputs = batch_of(task, tokenizer)
        pooling = layers.Pooling(8, pooling_mode=kind)
        features = {"token_embeddings": outputs.last_hidden_state, "attention_mask": batch["attention_mask"]}
        wanted = normalize(pooling(features)["sentence_embedding"], dim=-1)
        torch.testing.assert_close(torch.cat(task.embedded(outputs, batch)), wanted)


def test_contrast_is_that_of_a_plain_loop(make_task, pairs, tokenizer):
    task = make_task("embedding", **files(pairs), temperature=0.1, dims=[8, 4])
    batch, outputs = batch_of(task, tokenizer)
    left, right = task.embedded(outputs, batch)
    wanted = []
    for i in range(len(PAIRS)):
        losses = []
        for dim in (8, 4):
            a, p = normalize(left[:, :dim], dim=1), normalize(right[:, :dim], dim=1)
            others = [j for j in range(len(PAIRS)) if j == i or PAIRS[i][0] != PAIRS[j][0]]
            scores = {j: math.exp(float(a[i] @ p[j]) / 0.1) for j in others}
            losses.append(-math.log(scores[i] / sum(scores.values())))
        wanted.append(sum(losses) / 2)
    torch.testing.assert_close(task.row_losses(outputs, batch), torch.tensor(wanted), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(task.loss(outputs, batch), torch.tensor(wanted).mean(), atol=1e-5, rtol=1e-4)


def test_what_shares_a_text_is_no_negative():
    # texts by number: pairs 0 and 1 share a text across, 1 and 2 a second one, 3 stands alone
    shared = _sharing(torch.tensor([[0, 1], [1, 2], [3, 2], [4, 5]]))
    wanted = torch.zeros(4, 4, dtype=torch.bool)
    for one, other in ((0, 1), (1, 2)):
        wanted[one, other] = wanted[other, one] = True
    assert torch.equal(shared, wanted)


def test_a_length_above_the_models_is_refused(make_task, pairs, tokenizer):
    task = make_task("embedding", **files(pairs), dims=[16])
    batch, outputs = batch_of(task, tokenizer)
    with pytest.raises(UserError, match=r"task\.dims=\[16\].*8 long"):
        task.loss(outputs, batch)


def test_similarity(make_task, scored, tokenizer, tmp_path):
    others = {split: tmp_path / f"{split}.jsonl" for split in ("validation", "test")}
    for split, path in others.items():
        path.write_text(json.dumps({"text": split, "text_pair": "a map", "score": 1}) + "\n")
    named = {f"{split}_file": str(path) for split, path in others.items()}
    task = make_task("similarity", train_file=scored, **named, least=0, most=2)
    batch, outputs = batch_of(task, tokenizer)
    left, right = task.embedded(outputs, batch)
    cosines = torch.nn.functional.cosine_similarity(left, right)
    assert batch["labels"].tolist() == [0, 0.5, 1, 1.5]
    torch.testing.assert_close(task.predict(outputs, batch)[0], cosines)
    torch.testing.assert_close(task.loss(outputs, batch), (cosines - batch["labels"] / 2).square().mean())


@pytest.mark.parametrize(
    ("option", "changes", "says"),
    [
        ("similarity", {"least": 1, "most": 1}, "task.most=1"),
        ("similarity", {"problem": "classification"}, "task.problem=classification"),
        ("similarity", {"text_pair": None}, "task.text_pair"),
        ("embedding", {"temperature": 0}, "task.temperature=0"),
        ("embedding", {"dims": []}, "task.dims"),
        ("embedding", {"batch_size": 1}, "task.batch_size=1"),
        ("nli_pairs", {"batch_size": 1}, "task.batch_size=1"),
        ("embedding", {"pooling": "max"}, "task.pooling=max"),
        ("embedding", {"metrics": ["f1"], "best_metric": "f1"}, "f1 is no metric of a retrieval"),
    ],
)
def test_refuses(make_task, option, changes, says):
    with pytest.raises(UserError) as error:
        make_task(option, **changes)
    assert says in str(error.value)


@pytest.mark.parametrize(("least", "most", "score"), [(0, 1, "1.5"), (0.5, 2, "0.0")])
def test_a_score_beyond_its_range_is_refused(make_task, scored, least, most, score):
    with pytest.raises(UserError, match=rf"scored.jsonl, line \d: score '{score}'; allowed is a number from"):
        make_task("similarity", train_file=scored, least=least, most=most).splits  # noqa: B018


def test_ranking_scores():
    cosines = torch.tensor([[0.9, 0.8, 0.7], [0.1, 0.3, 0.2], [0.5, 0.4, 0.3]])
    relevant = torch.tensor([[True, False, True], [True, False, False], [True, True, True]])
    best = 1 + 1 / math.log2(3)
    wanted = [[(1 + 1 / 2) / best, 1, 1], [1 / 2, 1 / 3, 1], [1, 1, 1]]
    torch.testing.assert_close(ranking_scores(cosines, relevant), torch.tensor(wanted, dtype=torch.double))


def test_beyond_ten_ranks_nothing_counts():
    cosines = torch.arange(20, 0, -1.0)[None]
    relevant = torch.zeros(1, 20, dtype=torch.bool)
    relevant[0, [0, 10, 15]] = True
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    torch.testing.assert_close(
        ranking_scores(cosines, relevant), torch.tensor([[1 / ideal, 1, 1 / 3]], dtype=torch.double)
    )


def test_retrieval_over_batches():
    vectors = torch.eye(4)
    left, right = vectors[[0, 1, 2]], vectors[[0, 2, 1]]  # queries 1 and 2 find each other's text first
    preds, numbers = torch.cat([left, right], 1), torch.tensor([[5, 6], [7, 8], [9, 10]])
    scores = RetrievalScores(NAMES)
    for rows in (slice(0, 1), slice(1, 3)):
        scores.update(preds[rows], numbers[rows])
    found = scores.compute()
    assert found["recall_at_10"] == 1
    assert 0 < found["mrr_at_10"] < 1


def test_pairs_of_one_label(make_task, monkeypatch, tmp_path):
    folder = tmp_path / "MNLI"
    folder.mkdir()
    head = "\t".join(["index", *(f"c{i}" for i in range(7)), "sentence1", "sentence2", "label1", "gold_label"])
    labels = ("entailment", "neutral", "contradiction")
    for name, count in (("train", 90), ("dev_matched", 9), ("dev_mismatched", 9)):
        rows = ["\t".join([str(i), *["x"] * 7, f"{name} {i}", f"so {i}", "y", labels[i % 3]]) for i in range(count)]
        (folder / f"{name}.tsv").write_text("\n".join([head, *rows]) + "\n")
    task = make_task("nli_pairs", data_dir=str(tmp_path), rows=10)
    assert task.describe()["rows"] == {"train": 10, "val": len(task.splits.validation), "test": 3, "mismatched": 3}
    assert "label" not in task.splits.train
    with pytest.raises(UserError, match="belongs=same: allowed for mnli are entailment"):
        make_task("nli_pairs", data_dir=str(tmp_path), belongs="same").splits  # noqa: B018


def test_tokens_of_all_texts(make_task, pairs, tokenizer):
    task = make_task("embedding", **files(pairs))
    task.use(tokenizer)
    data = task.encoded("train")
    texts = [a for a, _ in PAIRS] + [b for _, b in PAIRS]
    assert [data.tokens.row(i)[0].tolist() for i in range(len(texts))] == [tokenizer(text).input_ids for text in texts]
