"""A tokenizer of words, and tasks built from their yaml without Hydra."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from keepfrac.storage.build import build
from keepfrac.tasks.data import hub_data

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures" / "glue"
CONF = Path(__file__).resolve().parents[3] / "conf" / "task"
WORDS = ["a", "the", "red", "door", "two", "apples", "song", "map", "box", "room", "it", "is", "good", "bad"]


def word_tokenizer(words=WORDS, inputs=("input_ids", "token_type_ids", "attention_mask")):
    vocab = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
        model_input_names=list(inputs),
    )


@pytest.fixture
def tokenizer():
    return word_tokenizer()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GLUE_DATA", raising=False)


@pytest.fixture
def make_task():
    """`make_task("mrpc", rows=10)` builds a task from its yaml."""

    return lambda option, **overrides: build(settings_of(option, max_length=32) | overrides)


def settings_of(option: str, **overrides) -> dict:
    """A task's yaml with what the configuration gives it."""
    settings = yaml.safe_load((CONF / f"{option}.yaml").read_text())
    settings.pop("defaults", None)
    return settings | {"batch_size": 4, "eval_batch_size": 8, "seed": 1, "num_workers": 0} | overrides


@pytest.fixture
def on_the_hub(monkeypatch):
    """`on_the_hub({"train": ...})` makes the hub answer with these splits or fail; lists what is asked."""

    def offer(found):
        asked: list[tuple] = []

        def load_dataset(*where, **more):
            asked.append((*where, more))
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
        monkeypatch.setattr(hub_data, "hub_answers", lambda: True)
        return asked

    return offer
