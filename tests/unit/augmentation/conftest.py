"""A masked language model and a WordPiece tokenizer of some forty words, in a folder as users have them."""

from pathlib import Path

import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast

from keepfrac.augmentation.tinybert import TinyBertAugmentation
from keepfrac.storage.build import build

CONF = Path(__file__).resolve().parents[3] / "conf" / "augment" / "tinybert.yaml"
WORDS = """
    the a film story music plot was seemed and but good great fine lovely charming dull awful poor bad tedious
    actor scene end joke song red blue long short old new he she it 's ' t won . ,
""".split()  # noqa: SIM905
PIECES = ["##ly", "##ing", "##s", "un", "##believ", "##able"]


@pytest.fixture(scope="session")
def tokenizer():
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *PIECES]
    backend = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, model_input_names=inputs, **special)


def _saved(kind, tokenizer, folder) -> Path:
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    places = {"vocab_size": len(tokenizer), "max_position_embeddings": 64}
    kind(BertConfig(**sizes, **places, initializer_range=0.5)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def masked_lm(tokenizer, tmp_path_factory) -> Path:
    """The folder of a masked language model."""
    return _saved(BertForMaskedLM, tokenizer, tmp_path_factory.mktemp("masked_lm"))


@pytest.fixture(scope="session")
def headless(tokenizer, tmp_path_factory) -> Path:
    """The folder of the same without a head."""
    return _saved(BertModel, tokenizer, tmp_path_factory.mktemp("headless"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def augmentation(masked_lm):
    """`augmentation(times=3)` builds it from its yaml."""

    def make(**overrides) -> TinyBertAugmentation:
        settings = yaml.safe_load(CONF.read_text()) | {"seed": 0, "model": str(masked_lm)}
        return build(settings | overrides)

    return make
