"""A family that is not in the table: what works without a row, and what the refusal of the rest says."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from keepfrac.adapters.surgery import attach
from keepfrac.errors import UserError
from keepfrac.measurement.parts import parts
from keepfrac.models.anatomy import anatomy, head_of
from keepfrac.models.families import FAMILIES
from keepfrac.models.targets import targets_of
from keepfrac.models.vocabulary.pruning import keep_rows
from keepfrac.sparse.recompute import CheckpointedLayers
from tests.tiny import inputs

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


@pytest.fixture
def net():
    config = AutoConfig.for_model(
        "roformer", **SIZES, **STILL, vocab_size=60, embedding_size=32, pad_token_id=0, num_labels=3
    )
    return AutoModelForSequenceClassification.from_config(config)


def step(net):
    loss = net.train()(**inputs()).logits.square().mean()
    loss.backward()
    return loss


def test_the_refusal_names_the_table_and_what_works_without_a_row(net):
    with pytest.raises(UserError) as caught:
        anatomy(net)
    (message,) = str(caught.value).splitlines()
    words = ("'roformer'", "models/families.py", "method=nosp", "method=lora method.targets", "distill=logits")
    assert all(word in message for word in (*words, "method=vocab", *FAMILIES))


def test_low_rank_updates_of_the_linears_that_a_pattern_names(net):
    targets = targets_of(net, [r".*query"])
    attach(net, targets, rank=2, scale=1.0)
    step(net)
    assert len(targets) == 2
    assert {name for name, one in net.named_parameters() if one.grad is not None and one.ndim == 2 and "query" in name}
    with pytest.raises(UserError, match="no row for it"):
        targets_of(net, ["query"])


def test_its_head_is_what_is_outside_of_the_encoder(net):
    assert head_of(net) == ("classifier",)


def test_checkpoint_and_vocab(net):
    want = step(net)
    CheckpointedLayers(CheckpointedLayers.Settings(name="checkpoint", keep_frac=1.0)).attach(net)
    assert net.is_activation_checkpointing
    torch.testing.assert_close(step(net), want)
    keep_rows(net, range(50))
    assert net.get_input_embeddings().weight.shape[0] == 50


def test_sizes_by_part_are_left_out(net):
    assert parts(net) == []
