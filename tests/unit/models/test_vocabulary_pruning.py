"""A pruned tokenizer divides the texts it was pruned for as before, for each kind; the model computes the same."""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from keepfrac.errors import UserError
from keepfrac.models.vocabulary.pruning import (
    keep_rows,
    rebuilt,
    remap_ids,
    special_token_ids,
    state_of,
    token_ids,
    tokens_to_keep,
)
from keepfrac.storage.archives import minilm_folder

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LEARNT = [
    "the quick brown fox jumps over the lazy dog", "she sells sea shells by the sea shore", "peter piper picked a peck",
    "how much wood would a woodchuck chuck", "unbelievable internationalisation of tokenizers", "naïve café déjà vu",
    "quickly quicker quickest jumping jumped jumper", "shells shelling shelled dogs foxes woods",
] * 3  # fmt: skip
READ = ["the quicker foxes jumped over woods", "unbelievable shells, naïve dogs!", "a peck of tokenizers"]
UNREAD = ["zebra quiz: jazz ünd 你好", "woodchucks internationalised"]


def ends() -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )


def byte_pairs(byte_level: bool, **settings) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=None if byte_level else "[UNK]", **settings))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel() if byte_level else pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.ByteLevel() if byte_level else decoders.BPEDecoder()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    own = {key: value for key, value in settings.items() if key != "unk_token"}
    tokenizer.train_from_iterator(
        LEARNT, trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, **own)
    )
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        LEARNT, trainers.UnigramTrainer(vocab_size=160, special_tokens=SPECIAL, unk_token="[UNK]")
    )
    return tokenizer


def words() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(LEARNT, trainers.WordLevelTrainer(special_tokens=SPECIAL))
    return tokenizer


MADE = {
    "bpe of bytes": lambda: byte_pairs(True),
    "bpe of letters": lambda: byte_pairs(False),
    "bpe with a suffix": lambda: byte_pairs(False, end_of_word_suffix="</w>"),
    "bpe with a prefix": lambda: byte_pairs(False, continuing_subword_prefix="##"),
    "unigram": unigram,
    "words": words,
}


def fast(kind: str):
    if kind == "wordpiece":
        return AutoTokenizer.from_pretrained(minilm_folder())
    backend = MADE[kind]()
    backend.post_processor = ends()
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL, strict=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **names)
    tokenizer.add_tokens(["<extra>"])
    return tokenizer


def bert(tokenizer):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer) + 3, pad_token_id=tokenizer.pad_token_id, **sizes)
    ).eval()


def pruned(tokenizer, net, texts=READ, characters=True):
    seen = {i for text in texts for i in tokenizer(text)["input_ids"]}
    state = state_of(tokenizer)
    kept = tokens_to_keep(state, seen, special_token_ids(tokenizer, net), characters)
    smaller, old = remap_ids(state, kept)
    keep_rows(net, old)
    return rebuilt(tokenizer, smaller), old


@pytest.mark.parametrize("kind", ["wordpiece", *MADE])
def test_texts_are_divided_as_before_and_the_logits_are_the_same(kind):
    tokenizer = fast(kind)
    net = bert(tokenizer)
    kind_of = {"padding": True, "return_tensors": "pt"}
    before = tokenizer(READ, READ[::-1], **kind_of)
    with torch.no_grad():
        logits = net(**before).logits
    smaller, old = pruned(tokenizer, net)
    after = smaller(READ, READ[::-1], **kind_of)
    assert len(smaller) == len(old) == net.config.vocab_size < len(tokenizer)
    assert torch.equal(torch.tensor(old)[after["input_ids"]], before["input_ids"])
    with torch.no_grad():
        assert torch.equal(net(**after).logits, logits)
    assert net.config.original_vocab_size == len(tokenizer) + 3
    assert smaller.model_max_length == tokenizer.model_max_length
    assert smaller.decode(after["input_ids"][0]) == tokenizer.decode(before["input_ids"][0])
    for name in ("pad", "unk", "cls", "sep", "mask"):
        assert getattr(smaller, f"{name}_token") == getattr(tokenizer, f"{name}_token")
        assert old[getattr(smaller, f"{name}_token_id")] == getattr(tokenizer, f"{name}_token_id")


@pytest.mark.parametrize("kind", ["wordpiece", *MADE])
def test_it_survives_a_folder_and_a_second_pruning_changes_nothing(kind, tmp_path):
    tokenizer = fast(kind)
    smaller, _ = pruned(tokenizer, bert(tokenizer))
    smaller.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(READ + UNREAD)["input_ids"] == smaller(READ + UNREAD)["input_ids"]
    twice, old = pruned(again, bert(again))
    assert len(twice) == len(again) and old == list(range(len(again)))


@pytest.mark.parametrize("kind", ["wordpiece", *MADE])
def test_what_was_not_read_is_known_in_parts_or_unknown(kind):
    tokenizer = fast(kind)
    smaller, old = pruned(tokenizer, bert(tokenizer))
    for text in UNREAD:
        found = smaller(text)["input_ids"]
        assert found and max(found) < len(old)
    if kind == "bpe of bytes":
        assert smaller.decode(smaller(UNREAD[0])["input_ids"], skip_special_tokens=True).strip() == UNREAD[0]
    if kind == "words":
        assert smaller.unk_token_id in smaller("zebra")["input_ids"]
    if kind == "wordpiece":
        assert smaller.tokenize("peters") == ["p", "##e", "##t", "##e", "##r", "##s"]
        fewer, _ = pruned(tokenizer, bert(tokenizer), characters=False)
        assert fewer.tokenize("zebra") == ["[UNK]"] and len(fewer) < len(smaller)


def test_bytes_to_fall_back_to_stay():
    pieces = [
        ("[UNK]", 0.0),
        *((f"<0x{byte:02X}>", -9.0) for byte in range(256)),
        ("▁a", -1.0),
        ("b", -2.0),
        ("c", -3.0),
    ]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[UNK]")
    smaller, _ = pruned(tokenizer, bert(tokenizer), texts=["b"], characters=False)
    known = set(token_ids(state_of(smaller)))
    assert {f"<0x{byte:02X}>" for byte in range(256)} | {"[UNK]", "b"} == known


def test_numbers_in_the_configuration_follow():
    tokenizer = fast("words")
    net = bert(tokenizer)
    net.config.eos_token_id, net.config.bos_token_id = (tokenizer.sep_token_id, tokenizer("quick")["input_ids"][1])
    named = (net.config.eos_token_id, net.config.bos_token_id)
    _, old = pruned(tokenizer, net, texts=["lazy dog"])
    assert (old[net.config.eos_token_id], old[net.config.bos_token_id]) == named
    assert old[net.get_input_embeddings().padding_idx] == tokenizer.pad_token_id


def test_merges_are_those_of_kept_tokens_in_their_order():
    tokenizer = fast("bpe of letters")
    state = state_of(tokenizer)
    smaller, _ = pruned(tokenizer, bert(tokenizer))
    merges, former = state_of(smaller)["model"]["merges"], state["model"]["merges"]
    assert 0 < len(merges) < len(former)
    places = [former.index(merge) for merge in merges]
    assert places == sorted(places)


def test_what_has_no_tokenizer_json_is_refused():
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        state_of(object())
    strange = json.loads(words().to_str())
    strange["model"]["type"] = "Odd"

    class Strange:
        class backend_tokenizer:
            to_str = staticmethod(lambda: json.dumps(strange))

    with pytest.raises(UserError, match="Odd vocabulary cannot be pruned"):
        state_of(Strange())
