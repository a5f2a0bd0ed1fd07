"""What was kept, in numbers: as the original project counted it, and in full.

The original (FLOP for BERT) writes eight lines into `info.txt`, and its published example has these eight; the nine
full counts below them are ours. Its `dense_total_params` is the size of a *full* singular value decomposition, which
for the 3072 x 768 matrix holds 2304 directions of singular value 0: 233,570,304 for BERT-base's 84,934,656 prunable
weights. Its `non_kernel_params` forgets the pooler's matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from keepfrac.prune.cost import Cost, ParamsCost, fraction, total
from keepfrac.prune.structure import LayerCounts, ModelShape


@dataclass(frozen=True)
class Account:
    """Parameter counts of a pruned model and its dense original.

    Args:
        inflated: weights of the full decomposition of every prunable matrix (the original's denominator).
        prunable: weights of the encoder's linears in the dense original.
        kept: weights of the encoder's linears that are left.
        others: all parameters but the encoder's linears' weights, dense original: embeddings, biases, norms,
            pooler, head.
        others_kept: the same of the pruned model (biases go with their units).
        pooler: weights of the pooler's matrix, that the original's count leaves out.
    """

    inflated: int
    prunable: int
    kept: int
    others: int
    others_kept: int
    pooler: int

    def original_lines(self) -> list[str]:
        """Returns the eight lines of the original's `info.txt`, in its order and with its omissions."""
        others = self.others_kept - self.pooler
        whole, pruned = self.prunable + others, self.kept + others
        return [
            f"dense_total_params: {self.inflated}",
            f"dense_pruned_params: {self.kept}",
            f"dense_origin_params: {self.prunable}",
            f"dense_sparsity: {1 - self.kept / self.inflated:.6f}",
            f"non_kernel_params: {others}",
            f"total_params: {whole}",
            f"pruned_total_params: {pruned}",
            f"actual_compact_rate: {pruned / whole:.6f}",
        ]

    def full_lines(self) -> list[str]:
        """Returns lines that count the same model in full, against the dense original."""
        dense, pruned = self.prunable + self.others, self.kept + self.others_kept
        return [
            f"encoder_linear_weights_dense: {self.prunable}",
            f"encoder_linear_weights_kept: {self.kept}",
            f"encoder_linear_weights_keep_frac: {self.kept / self.prunable:.6f}",
            f"encoder_linear_weights_sparsity: {1 - self.kept / self.prunable:.6f}",
            f"other_params_dense: {self.others}",
            f"other_params_kept: {self.others_kept}",
            f"model_params_dense: {dense}",
            f"model_params_kept: {pruned}",
            f"model_params_keep_frac: {pruned / dense:.6f}",
        ]

    def info_txt(self) -> str:
        """Returns the whole file: the original's lines, then the full counts."""
        return "\n".join([*self.original_lines(), *self.full_lines()]) + "\n"


def account(shape: ModelShape, counts: Sequence[LayerCounts], dense_params: int, params: int, pooler: int) -> Account:
    """Counts a pruned model.

    Args:
        shape: the original dense encoder.
        counts: what is left of it.
        dense_params: all parameters of the dense original model, shared ones once.
        params: all parameters of the pruned model.
        pooler: weights of the pooler's matrix (0 where the model has none).
    """
    cost = ParamsCost(shape, merges=False)  # what was to be merged is merged: factors count as they stand
    prunable, left = int(cost.dense), int(total(cost, counts))
    return Account(
        inflated=inflated(shape),
        prunable=prunable,
        kept=left,
        others=dense_params - prunable,
        others_kept=params - left,
        pooler=pooler,
    )


def inflated(shape: ModelShape) -> int:
    """Weights of a full decomposition of every prunable matrix: inputs^2 + inputs * outputs each."""
    sizes = [shape.linear(role, shape.num_heads, shape.num_neurons) for role in shape.roles]
    return shape.num_layers * sum(int(inputs) ** 2 + int(inputs) * int(outputs) for inputs, outputs in sizes)


def kept(cost: Cost, asked: float, counts: Sequence[LayerCounts]) -> dict[str, float | str]:
    """Returns the `kept` entry of a result: asked, achieved, unit, of."""
    return {
        "asked": asked,
        "achieved": float(fraction(cost, counts)),
        "unit": cost.unit,
        "of": f"the dense {cost.shape.kind}",
    }
