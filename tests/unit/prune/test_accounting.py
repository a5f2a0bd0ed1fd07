import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from keepfrac.prune.accounting import Account, account, inflated
from keepfrac.prune.structure import LayerCounts, ModelShape

BERT_BASE = ModelShape(12, 768, 12, 64, 3072)


def test_the_original_denominator_is_the_full_decomposition():
    assert inflated(BERT_BASE) == 233_570_304


def test_a_dense_model_keeps_all_of_it():
    with torch.device("meta"):
        net = BertForSequenceClassification(BertConfig(num_labels=2))
    params = sum(p.numel() for p in net.parameters())
    found = account(BERT_BASE, BERT_BASE.counts(), params, params, 768 * 768)
    assert found.prunable == found.kept == 84_934_656 and found.others == params - 84_934_656


def test_the_original_example_is_reproduced_to_the_digit():
    # its run kept 41,538,048 weights; 23,959,298 parameters of its checkpoint are outside kernels, 589,824 the pooler's
    others = 23_959_298 + 589_824
    example = Account(233_570_304, 84_934_656, 41_538_048, others, others, 589_824)
    assert example.original_lines() == [
        "dense_total_params: 233570304", "dense_pruned_params: 41538048", "dense_origin_params: 84934656",
        "dense_sparsity: 0.822160", "non_kernel_params: 23959298", "total_params: 108893954",
        "pruned_total_params: 65497346", "actual_compact_rate: 0.601478",
    ]  # fmt: skip
    assert len(example.full_lines()) == 9 and {
        "encoder_linear_weights_sparsity: 0.510941", "model_params_dense: 109483778", "model_params_kept: 66087170",
        "model_params_keep_frac: 0.603625",
    } < {*example.full_lines()}  # fmt: skip
    assert example.info_txt().splitlines() == example.original_lines() + example.full_lines()


def test_biases_of_removed_units_are_not_counted_as_kept():
    shape = ModelShape(1, 8, 2, 4, 16)
    found = account(shape, [LayerCounts(1, 16)], 1000, 800, 0)
    assert found.others == 1000 - found.prunable and found.others_kept == 800 - found.kept
    assert found.kept == pytest.approx(found.prunable - 4 * 8 * 4)
