"""A tokenizer of words, and tasks built from their yaml without Hydra."""

from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from keepfrac.storage.build import build

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

    def make(option: str, **overrides):
        settings = yaml.safe_load((CONF / f"{option}.yaml").read_text())
        settings |= {"batch_size": 4, "eval_batch_size": 8, "seed": 1, "num_workers": 0, "max_length": 32}
        return build(settings | overrides)

    return make
