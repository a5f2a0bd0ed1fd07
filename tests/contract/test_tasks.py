"""Each method on each kind of task: two steps on the two-layer model, what is delivered reloads and is scored.

The methods are those of conf/method, the kinds those of the table below: a new yaml is tested without an edit. A pair
that makes no sense stands in REFUSED, with what its one clear error says.
"""

import json
import math

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer, pipeline

from keepfrac.errors import UserError
from keepfrac.models.load import load_body
from keepfrac.run import identity
from keepfrac.run.run import run
from tests.contract.settings_of import CONF, KEEP, METHODS, TWO_STEPS, is_preset, matching, words
from tests.integration.conftest import BAD, GOOD, sentences

COUNTS = (("train", 16), ("validation", 8), ("test", 8))


def tagged(text: str, label: str) -> str:
    tags = [f"B-{label}" if word in (GOOD if label == "good" else BAD) else "O" for word in text.split()]
    return json.dumps({"tokens": text.split(), "tags": tags})


def asked(text: str, label: str) -> str:
    word = next(word for word in text.split() if word in (*GOOD, *BAD))
    answer = {"text": word, "answer_start": text.index(word)}
    question = {"id": text, "question": f"how {label} is it", "answers": [answer]}
    return json.dumps({"context": text, "qas": [question]})


KINDS = {  # kind: how a row of it is written, from a sentence and its label, and what names it
    "ner": (tagged, "jsonl", ("task=ner",)),
    "similarity": (
        lambda text, label: json.dumps({"text": text, "text_pair": text[::-1], "score": float(label == "good")}),
        "jsonl",
        ("task=similarity",),
    ),
    "embedding": (
        lambda text, label: json.dumps({"text": text, "text_pair": f"{label} {text}"}),
        "jsonl",
        ("task=embedding",),
    ),
    "qa": (asked, "json", ("task=qa", "task.max_length=96", "task.stride=8", "task.longest_question=16")),
    "reranking": (
        lambda text, label: json.dumps({"query": text[:9], "passage": text, "relevance": float(label == "good")}),
        "jsonl",
        ("task=reranking",),
    ),
    "regression": (
        lambda text, label: json.dumps({"text": text, "label": len(text) / 50 + (label == "good")}),
        "jsonl",
        ("task=csv", "task.problem=regression"),
    ),
    "multi_label": (
        lambda text, label: json.dumps({"text": text, "label": label + " long" * (len(text) > 50)}),
        "jsonl",
        ("task=csv", "task.multi_label=true"),
    ),
}
FIRST = ("ner", "embedding")
"""Kinds that are tried with every method each time; the others with those of QUICK, the rest in the slow set."""
QUICK = ("nosp", "late", "l0", "lora")
REFUSED: dict[tuple[str, str], str] = {}  # (kind, method): what the error says


def cases():
    for kind in KINDS:
        for method in METHODS:
            slow = (pytest.mark.slow,) if is_preset(method) or (kind not in FIRST and method not in QUICK) else ()
            yield pytest.param(kind, method, marks=slow, id=f"{kind}-{method}")


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A function from a kind, a method and overrides to (results, folder) of a run of two steps."""
    root = tmp_path_factory.mktemp("tasks")
    for kind, (written, suffix, _) in KINDS.items():
        for seed, (split, count) in enumerate(COUNTS):
            rows = [written(*row) for row in sentences(count, seed)]
            whole = "\n".join(rows) if suffix == "jsonl" else f'{{"data": [{{"paragraphs": [{", ".join(rows)}]}}]}}'
            (root / f"{kind}-{split}.{suffix}").write_text(whole + "\n")
    identity.register()

    def run_(kind: str, method: str, *overrides: str):
        _, suffix, named = KINDS[kind]
        with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(CONF), version_base="1.3"):
            patch.setenv("KEEPFRAC_MULTIRUN", str(root / "multirun"))
            base = [*words(method, TWO_STEPS), "model=bert_tiny", *named, "logger=csv", "steps=2", "batch_size=8"]
            base += [f"task.{split}_file={root}/{kind}-{split}.{suffix}" for split, _ in COUNTS]
            base += ["hardware.precision=32-true", "hardware.threads=1", "probe_steps=0", "lr=1e-3", "name=tasks"]
            cfg = compose("config", overrides=[*base, *overrides])
            return run(cfg), identity.cell(cfg).folder

    return run_


@pytest.mark.parametrize(("kind", "method"), [*cases()])
def test_a_method_trains_on_a_kind_of_task(run_of, kind, method):
    keep = f"keep_frac={matching(KEEP, method) or 0.75}"
    if says := REFUSED.get((kind, method)):
        with pytest.raises(UserError, match=says):
            run_of(kind, method, keep)
        return
    found, folder = run_of(kind, method, keep)
    assert found["status"] == "done"
    assert found["cost"]["steps"] == 2
    scores = found["scores"] if "scores" in found else found["test"]
    assert scores and all(math.isfinite(value) for value in scores.values())
    load_body(folder / "model")


def test_a_tagger_is_served_by_a_pipeline(run_of):
    _, folder = run_of("ner", "nosp", "keep_frac=1", "lr=3e-3", "epochs=60", "steps=null", "task.eval_batch_size=4")
    found = pipeline("token-classification", str(folder / "model"), aggregation_strategy="simple")
    groups = {one["entity_group"] for one in found("the film was lovely and the plot dull")}
    assert groups and groups <= {"good", "bad"}
    scores = json.loads((folder / "results.json").read_text())["scores"]
    assert {"test/f1", "test/f1_of_good", "test/f1_of_bad", "test/word_accuracy"} <= set(scores)


@pytest.mark.parametrize(("method", "keep"), [("nosp", 1), ("taylor", 0.75)])
def test_a_folder_is_one_of_sentence_transformers(run_of, method, keep):
    library = pytest.importorskip("sentence_transformers")
    _, folder = run_of("embedding", method, f"keep_frac={keep}")
    model = library.SentenceTransformer(str(folder / "model"), device="cpu", trust_remote_code=keep < 1)
    found = torch.tensor(model.encode(["the film was lovely", "a plot"]))
    tokenizer, net = AutoTokenizer.from_pretrained(folder / "model"), load_body(folder / "model")
    batch = tokenizer(["the film was lovely", "a plot"], padding=True, return_tensors="pt")
    hidden, mask = net.eval()(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1)
    wanted = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert model.max_seq_length == 128
