"""Passages ranked for each query."""

import json
import math
from types import SimpleNamespace

import pytest
import torch

from keepfrac.errors import UserError
from keepfrac.tasks.metrics.retrieval import NAMES, RerankingScores

ROWS = [("red door", "it is red", 1), ("red door", "two apples", 0), ("song", "a good song", 1), ("song", "map", 0)]


def task_of(make_task, tmp_path, rows=ROWS):
    files = {}
    for split in ("train", "validation", "test"):
        path = tmp_path / f"{split}.jsonl"
        lines = [json.dumps({"query": f"{split} {q}", "passage": p, "relevance": r}) for q, p, r in rows]
        path.write_text("\n".join(lines) + "\n")
        files[f"{split}_file"] = str(path)
    return make_task("reranking", **files)


def test_scores_of_each_query_by_itself():
    scores = RerankingScores(NAMES)
    target = torch.tensor([[1, 5], [0, 5], [0, 9], [1, 9], [0, 9], [0, 2], [1, 9]], dtype=torch.double)
    scores.update(torch.tensor([0.1, 0.9, 0.5]), target[:3])
    scores.update(torch.tensor([0.4, 0.3, 7.0, 0.6]), target[3:])  # query 2 has no relevant passage
    found = {name: float(value) for name, value in scores.compute().items()}
    ndcg = [1 / math.log2(3), (1 + 1 / 2) / (1 + 1 / math.log2(3))]
    assert found == pytest.approx({"ndcg_at_10": sum(ndcg) / 2, "mrr_at_10": (1 / 2 + 1) / 2, "recall_at_10": 1})


def test_batches_and_loss(make_task, tmp_path, tokenizer):
    task = task_of(make_task, tmp_path)
    task.use(tokenizer)
    data = task.encoded("test")
    batch = task.collate([data[i] for i in range(len(data))])
    assert batch["labels"].tolist() == [1, 0, 1, 0] and batch["queries"].tolist() == [0, 0, 1, 1]
    logits = torch.tensor([[2.0], [-1.0], [0.5], [1.0]])
    wanted = -(logits.sigmoid().log()[::2].sum() + (1 - logits.sigmoid()).log()[1::2].sum()) / 4
    torch.testing.assert_close(task.loss(SimpleNamespace(logits=logits), batch), wanted)
    assert set(task.inputs(batch)) == {"input_ids", "attention_mask", "token_type_ids"}
    assert task.num_labels == 1


def test_refuses(make_task, tmp_path):
    with pytest.raises(UserError, match="no passage of the validation split is relevant"):
        task_of(make_task, tmp_path, [(q, p, 0) for q, p, _ in ROWS]).splits  # noqa: B018
    with pytest.raises(UserError, match=r"relevant to its query \(above 0.5\)"):
        task_of(make_task, tmp_path, [(q, p, 0.5 * r) for q, p, r in ROWS]).splits  # noqa: B018
    with pytest.raises(UserError, match="line 1"):
        task_of(make_task, tmp_path, [("song", "map", 3)]).splits  # noqa: B018
    with pytest.raises(UserError, match=r"task\.train_file="):
        make_task("reranking").splits  # noqa: B018
