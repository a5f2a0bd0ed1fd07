"""A model matched with its task and its tokenizer, held against plain Transformers."""

import copy

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, PreTrainedTokenizerFast

from keepfrac.errors import UserError
from keepfrac.models.load import load_for_task, load_net
from keepfrac.models.matching import check_embeddings, class_order, match_pad, match_tokens, most_tokens
from keepfrac.models.teacher import load_teacher
from tests.tiny import inputs, tiny
from tests.unit.models.test_load import settings
from tests.unit.tasks.conftest import word_tokenizer
from tests.unit.tasks.test_text import Toy

NAMES = ("bad", "fair", "good")
ORDER = ("good", "bad", "fair")


def saved(folder, net, tokenizer=None):
    net.save_pretrained(folder)
    (tokenizer or word_tokenizer()).save_pretrained(folder)
    return settings(name=str(folder), config=None, tokenizer=None, package=None)


def named(names, family="bert", **config):
    net = tiny(family, head="classification", num_labels=len(names), **config)
    net.config.id2label = dict(enumerate(names))
    return net


# classes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "labels", "order"),
    [
        (NAMES, NAMES, [0, 1, 2]),
        (NAMES, ORDER, [2, 0, 1]),
        (("ENTAILMENT", "Neutral"), ("neutral", "entailment"), [1, 0]),
        (("a", "A"), ("A", "a"), [1, 0]),
        (("LABEL_0", "LABEL_1"), ("no", "yes"), [0, 1]),
        (("0", "1"), ("no", "yes"), [0, 1]),
        (("0", "1"), ("1", "0"), [1, 0]),
        (("NEGATIVE", "POSITIVE"), ("0", "1"), [0, 1]),
        (("LABEL_1", "LABEL_0"), ("no", "yes"), None),
        (("bad", "good"), ("no", "yes"), None),
        (("bad", "good"), ("bad", "great"), None),
        (("LABEL_0", "LABEL_1", "LABEL_2"), ("no", "yes"), None),
    ],
)
def test_classes_go_by_name(own, labels, order):
    assert class_order(own, labels) == order


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_a_head_comes_into_the_tasks_order(family, tmp_path):
    given = saved(tmp_path, named(NAMES, family))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    net = load_net(given, "sequence_classification", ORDER, 3, 60).eval()
    with torch.no_grad():
        assert torch.equal(net(**inputs()).logits, plain(**inputs()).logits[:, [2, 0, 1]])
    assert list(net.config.id2label.values()) == list(ORDER)


def test_other_classes_are_refused_with_both_lists(tmp_path):
    given = saved(tmp_path, named(("bad", "good")))
    with pytest.raises(UserError, match=r"has the classes bad, good, the task no, yes: .*id2label.*model\.head=new$"):
        load_net(given, "sequence_classification", ("no", "yes"), 2, 60)


def test_a_new_head_takes_the_place_of_one_with_other_classes(tmp_path):
    given = saved(tmp_path, named(("bad", "good"))) | {"head": "new"}
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    net = load_net(given, "sequence_classification", ("no", "yes"), 2, 60)
    own = plain.state_dict()
    changed = {name for name, tensor in net.state_dict().items() if not torch.equal(tensor, own[name])}
    assert changed == {"classifier.weight", "classifier.bias"} and not net.classifier.bias.any()
    assert 0.01 < net.classifier.weight.std() < 0.03
    with pytest.raises(UserError, match=r"epochs=0 .*no trained head for this task \(classifier"):
        load_net(given, "sequence_classification", ("no", "yes"), 2, 60, learns=False)
    with pytest.raises(UserError, match=r"model\.head=new: without effect"):
        load_net(given, "masked_lm", None, 1, 60)


def test_a_tagger_takes_the_way_out_that_is_named(tmp_path):
    net = AutoModelForTokenClassification.from_config(named(("O", "B-film")).config)
    given, tags = saved(tmp_path, net), ("O", "B-song")
    with pytest.raises(UserError, match=r"has the classes O, B-film, the task O, B-song: .*model\.head=new$"):
        load_net(given, "token_classification", tags, 2, 60)
    new = load_net(given | {"head": "new"}, "token_classification", tags, 2, 60)
    assert not torch.equal(new.classifier.weight, net.classifier.weight)
    assert list(new.config.id2label.values()) == list(tags)


def test_a_head_of_another_width_is_new_whatever_its_names(tmp_path):
    given = saved(tmp_path, named(NAMES))
    assert load_net(given, "sequence_classification", ("no", "yes"), 2, 60).config.num_labels == 2


def test_a_teachers_classes_come_into_the_tasks_order(tmp_path):
    saved(tmp_path, named(NAMES))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    teacher = load_teacher(str(tmp_path), "sequence_classification", ORDER, 3, word_tokenizer(), 32)
    with torch.no_grad():
        assert torch.equal(teacher(**inputs()).logits, plain(**inputs()).logits[:, [2, 0, 1]])
    with pytest.raises(UserError, match=r"distill\.teacher=.* has the classes bad, fair, good, the task a, b, c"):
        load_teacher(str(tmp_path), "sequence_classification", ("a", "b", "c"), 3, word_tokenizer(), 32)


# the token to pad with ------------------------------------------------------------------------------------------------


def plain_tokenizer(**special):
    """Words alone, the first of which has the id 0; no token to pad with."""
    vocab = {token: i for i, token in enumerate(["red", "[UNK]", "the", "</s>", "<s>"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=["input_ids", "attention_mask"], **special
    )


def ending(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 3)]
    )
    return tokenizer


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("pad", [3, None])
def test_a_decoders_classes_do_not_depend_on_the_batch(family, pad, tmp_path):
    net = tiny(family, head="classification", num_labels=10, eos_token_id=3, pad_token_id=pad)
    given = saved(tmp_path, net, plain_tokenizer(eos_token="</s>"))
    task, tokenizer = Toy(), plain_tokenizer(eos_token="</s>")
    task.use(tokenizer)
    task.setup()
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    net = load_for_task(given, task, tokenizer).eval()
    assert tokenizer.pad_token_id == net.config.pad_token_id == 3
    with torch.no_grad():
        for batch in task.test_dataloader():
            found = net(**task.inputs(batch)).logits
            rows = [
                row[mask.bool()][None] for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
            assert torch.allclose(found, torch.cat([plain(row).logits for row in rows]), atol=1e-5)


def test_texts_that_end_in_a_token_are_not_padded_with_it(tmp_path):
    tokenizer = ending(plain_tokenizer(eos_token="</s>", unk_token="[UNK]"))
    net = tiny("gpt2", head="classification", pad_token_id=None)
    match_pad(net.config, tokenizer, "model x")
    assert tokenizer.pad_token == "[UNK]" and net.config.pad_token_id == 1


def test_the_models_token_comes_before_the_tokenizers():
    tokenizer = plain_tokenizer(eos_token="</s>", pad_token="<s>")
    net = tiny("llama", head="classification", pad_token_id=3)
    match_pad(net.config, tokenizer, "model x")
    assert tokenizer.pad_token_id == net.config.pad_token_id == 3
    net.config.pad_token_id = 59  # no token of the tokenizer
    match_pad(net.config, tokenizer, "model x")
    assert tokenizer.pad_token_id == net.config.pad_token_id == 3


def test_no_token_to_pad_with_is_refused():
    net = tiny("gpt2", head="classification", pad_token_id=None)
    with pytest.raises(UserError, match=r"model x: .*pad_token_id.*names a token to pad with"):
        match_tokens(net, plain_tokenizer(), 16, "model x")


def test_an_encoder_keeps_its_own():
    net, tokenizer = tiny("bert", pad_token_id=5), word_tokenizer()
    match_tokens(net, tokenizer, 16, "model x")
    assert net.config.pad_token_id == 5 and tokenizer.pad_token_id == 0


def test_a_teacher_is_padded_as_its_student(tmp_path):
    tokenizer = plain_tokenizer(eos_token="</s>", pad_token="<s>")
    net = tiny("gpt2", head="classification", num_labels=2, pad_token_id=3)
    saved(tmp_path, net, tokenizer)
    student = copy.deepcopy(tokenizer)
    with pytest.raises(UserError, match=r"is padded with </s>, the student with <s>"):
        load_teacher(str(tmp_path), "sequence_classification", ("0", "1"), 2, student, 16)
    student.pad_token = "</s>"
    load_teacher(str(tmp_path), "sequence_classification", ("0", "1"), 2, student, 16)


# positions and embeddings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "special", "most"),
    [
        ("bert", {}, 40),
        ("roberta", {"pad_token_id": 1}, 38),
        ("distilbert", {}, 40),
        ("gpt2", {}, 40),
        ("llama", {}, 40),
    ],
)
def test_the_longest_row_is_the_longest_that_can_be_computed(family, special, most):
    net, tokenizer = tiny(family, head="classification", **special), word_tokenizer()
    assert most_tokens(net) == most
    match_tokens(net, tokenizer, most, "model x")
    with pytest.raises(UserError, match=rf"task\.max_length={most + 1}: model x takes .* type task\.max_length={most}"):
        match_tokens(net, tokenizer, most + 1, "model x")
    with torch.no_grad():
        net(torch.full((1, most), 7))
        if family != "llama":  # its positions are angles: any number can be computed
            with pytest.raises((IndexError, RuntimeError)):
                net(torch.full((1, most + 1), 7))


def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused_with_both_numbers():
    tokenizer = word_tokenizer()
    check_embeddings(tiny(vocab_size=len(tokenizer)), tokenizer, "model x")
    with pytest.raises(UserError, match=rf"model x has {len(tokenizer) - 1} embeddings, .* {len(tokenizer)} tokens"):
        check_embeddings(tiny(vocab_size=len(tokenizer) - 1), tokenizer, "model x")
