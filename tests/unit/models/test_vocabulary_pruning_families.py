"""Vocabularies of tokenizers and models as they are in use: each family's own classes, heads and ties."""

import json

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from keepfrac.errors import UserError
from keepfrac.models.vocabulary.pruning import keep_rows, special_token_ids, state_of, tokens_to_keep
from tests.unit.models.test_vocabulary_pruning import LEARNT, READ, UNREAD, pruned

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXTS = [*READ, "don't!  two  spaces and 1234", "你好 😀"]


def byte_level(*special):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    settings = {"special_tokens": list(special), "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    return trained(backend, trainers.BpeTrainer(vocab_size=420, **settings))


def sentence_pieces_by_merges(*special):
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return trained(backend, trainers.BpeTrainer(vocab_size=700, special_tokens=[*special, *BYTES]))


def trained(backend, trainer):
    backend.train_from_iterator(LEARNT, trainer)
    found = json.loads(backend.to_str())["model"]
    return {"vocab": found["vocab"], "merges": [tuple(merge) for merge in found["merges"]]}


def sentence_pieces(*special, unknown="<unk>"):
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=180, special_tokens=list(special), unk_token=unknown)
    backend.train_from_iterator(LEARNT, trainer)
    return {"vocab": [tuple(piece) for piece in json.loads(backend.to_str())["model"]["vocab"]]}


ROBERTA = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
TOKENIZERS = {
    "gpt2": lambda: hf.GPT2Tokenizer(**byte_level("<|endoftext|>")),
    "roberta": lambda: hf.RobertaTokenizer(**byte_level(*ROBERTA)),
    "xlm_roberta": lambda: hf.XLMRobertaTokenizer(**sentence_pieces(*ROBERTA)),
    "albert": lambda: hf.AlbertTokenizer(**sentence_pieces("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")),
    "deberta": lambda: hf.DebertaV2Tokenizer(
        **sentence_pieces("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", unknown="[UNK]")
    ),
    "t5": lambda: hf.T5Tokenizer(**sentence_pieces("<pad>", "</s>", "<unk>"), extra_ids=5),
    "llama": lambda: hf.LlamaTokenizer(**sentence_pieces_by_merges("<unk>", "<s>", "</s>")),
}


def net_of(family: str, tokenizer, tied=True):
    ends = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "bos", "eos")}
    common = {"vocab_size": len(tokenizer), "tie_word_embeddings": tied, **ends}
    makers = {
        "gpt2": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, **common)),
        "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**SIZES, **common)),
        "xlm_roberta": lambda: hf.XLMRobertaForMaskedLM(hf.XLMRobertaConfig(**SIZES, **common)),
        "albert": lambda: hf.AlbertForMaskedLM(hf.AlbertConfig(embedding_size=8, **SIZES, **common)),
        "deberta": lambda: hf.DebertaV2ForMaskedLM(hf.DebertaV2Config(**SIZES, **common)),
        "t5": lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZES, **common)),  # of T5 the tokenizer alone
        "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SIZES, num_key_value_heads=2, **common)),
    }
    net = makers[family]().eval()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return net


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", TOKENIZERS)
def test_texts_logits_and_the_folder_are_as_before(family, tied, tmp_path):
    tokenizer = TOKENIZERS[family]()
    net = net_of(family, tokenizer, tied)
    before = {text: torch.tensor([tokenizer(text)["input_ids"]]) for text in TEXTS}
    with torch.no_grad():
        logits = {text: net(input_ids=ids).logits for text, ids in before.items()}
    smaller, old = pruned(tokenizer, net, TEXTS)
    assert len(smaller) == len(old) == net.config.vocab_size < len(tokenizer)
    assert type(smaller) is type(tokenizer)
    words, decoder = net.get_input_embeddings(), net.get_output_embeddings()
    assert (decoder.weight is words.weight) == tied
    assert net.config.original_vocab_size == len(tokenizer)
    net.save_pretrained(tmp_path)
    smaller.save_pretrained(tmp_path)
    again = hf.AutoTokenizer.from_pretrained(tmp_path)
    delivered = type(net).from_pretrained(tmp_path).eval()
    for text in TEXTS:
        ids = torch.tensor([again(text)["input_ids"]])
        assert torch.equal(torch.tensor(old)[ids], before[text])
        assert again.decode(ids[0]) == tokenizer.decode(before[text][0])
        with torch.no_grad():
            torch.testing.assert_close(delivered(input_ids=ids).logits, logits[text][..., old])
    assert all(max(again(text)["input_ids"]) < len(old) for text in UNREAD)


def words_with_padding_at(place: int):
    words = ["aa", "bb", "cc", "dd"]
    words.insert(place, "<pad>")
    vocab = {word: i for i, word in enumerate([*words, "<unk>", "ee", "ff"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return hf.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")


def test_padding_keeps_its_number_where_positions_are_counted_from_it():
    """Four words stand below it, one of which is read: without the others all positions would move."""
    tokenizer = words_with_padding_at(4)
    common = {"vocab_size": len(tokenizer), "pad_token_id": 4, "bos_token_id": None, "eos_token_id": None}
    net = hf.RobertaForMaskedLM(hf.RobertaConfig(**SIZES, **common)).eval()
    state = state_of(tokenizer)
    kept = tokens_to_keep(state, tokenizer("bb ee")["input_ids"], special_token_ids(tokenizer, net), False)
    assert kept == [0, 1, 2, 3, 4, 5, 6]
    bert = hf.BertForMaskedLM(hf.BertConfig(**SIZES, **common))
    assert tokens_to_keep(state, [1, 6], special_token_ids(tokenizer, bert), False) == [1, 4, 5, 6]
    with pytest.raises(UserError, match="counts positions from the id of its padding token, 4"):
        keep_rows(net, [1, 4, 5, 6])
