import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from keepfrac.prune.accounting import account, inflated
from keepfrac.prune.structure import LayerCounts, ModelShape

BERT_BASE = ModelShape(12, 768, 12, 64, 3072)


def test_the_original_denominator_is_the_full_decomposition():
    assert inflated(BERT_BASE) == 233_570_304


def test_info_txt_has_the_original_lines_and_the_honest_ones():
    with torch.device("meta"):
        net = BertForSequenceClassification(BertConfig(num_labels=2))
    params = sum(p.numel() for p in net.parameters())
    # what the original's example run kept: 41,538,048 weights
    kept = 41_538_048
    found = account(BERT_BASE, BERT_BASE.counts(), params, params, 768 * 768)
    assert found.prunable == found.kept == 84_934_656 and found.others == params - 84_934_656
    pruned = type(found)(found.inflated, found.prunable, kept, found.others, found.others_kept, found.pooler)
    lines = dict(line.split(": ") for line in pruned.info_txt().splitlines())
    assert lines["dense_total_params"] == "233570304" and lines["dense_origin_params"] == "84934656"
    assert lines["dense_pruned_params"] == "41538048" and lines["dense_sparsity"] == "0.822160"
    assert lines["encoder_linear_weights_sparsity"] == "0.510941"
    assert list(lines)[:8] == [
        "dense_total_params",
        "dense_pruned_params",
        "dense_origin_params",
        "dense_sparsity",
        "non_kernel_params",
        "total_params",
        "pruned_total_params",
        "actual_compact_rate",
    ]


def test_the_original_example_is_reproduced_to_the_digit():
    # its checkpoint: 23,959,298 parameters outside kernels and 589,824 in the pooler's
    others = 23_959_298 + 589_824
    example = type(account(BERT_BASE, BERT_BASE.counts(), 84_934_656, 84_934_656, 0))(
        233_570_304, 84_934_656, 41_538_048, others, others, 589_824
    )
    assert example.original_lines()[4:] == [
        "non_kernel_params: 23959298",
        "total_params: 108893954",
        "pruned_total_params: 65497346",
        "actual_compact_rate: 0.601478",
    ]
    assert len(example.original_lines()) == 8 and len(example.full_lines()) == 9
    assert example.info_txt().splitlines() == example.original_lines() + example.full_lines()
    assert "model_params_dense: 109483778" in example.full_lines()
    assert "model_params_kept: 66087170" in example.full_lines()
    assert "model_params_keep_frac: 0.603625" in example.full_lines()


def test_biases_of_removed_units_are_not_counted_as_kept():
    shape = ModelShape(1, 8, 2, 4, 16)
    found = account(shape, [LayerCounts(1, 16)], 1000, 800, 0)
    assert found.others == 1000 - found.prunable and found.others_kept == 800 - found.kept
    assert found.kept == pytest.approx(found.prunable - 4 * 8 * 4)
