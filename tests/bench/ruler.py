"""What `bench_backward` measures: bytes, peak and time of BERT-base layers, and the fidelity of gradients on MiniLM."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel
from transformers.models.bert.modeling_bert import BertLayer

from keepfrac.errors import DataMissing
from keepfrac.measurement.costs import saved_storages
from keepfrac.measurement.peak import peak_bytes
from keepfrac.storage.archives import minilm_folder, movie_reviews
from tests.bench.arms import DENSE, Arm, built

WIDTH = 768
Key = tuple[Arm, float]


@dataclass(frozen=True)
class Batch:
    """One kind of batch.

    Args:
        rows: sentences.
        length: tokens of each.
        real: share of tokens that are not padding.
        dropout: rate, everywhere.
        layers: BERT-base layers that it goes through.
        device: cpu | cuda.
    """

    rows: int
    length: int
    real: float
    dropout: float
    layers: int
    device: str

    def encoder(self) -> BertModel:
        rates = {"hidden_dropout_prob": self.dropout, "attention_probs_dropout_prob": self.dropout}
        torch.manual_seed(0)
        config = BertConfig(num_hidden_layers=self.layers, vocab_size=9, attn_implementation="sdpa", **rates)
        return BertModel(config, add_pooling_layer=False).train().to(self.device)

    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """The layers' input, their attention mask, and the gradient of what comes out."""
        torch.manual_seed(0)
        x, dy = (torch.randn(self.rows, self.length, WIDTH).to(self.device) for _ in range(2))
        x.requires_grad_()
        if self.real == 1:
            return x, None, dy
        shares = torch.linspace(max(2 * self.real - 1, 0.02), 1, self.rows)
        real = (torch.arange(self.length) < (shares[:, None] * self.length).round()).to(self.device)
        dy *= real[:, :, None]  # nothing looks at padding
        return x, real[:, None, None].expand(-1, 1, self.length, -1), dy

    def dense_bytes(self, dtype: torch.dtype) -> int:
        """What a GPU stores for these layers: one byte per dropped number, fused attention; 16.5 U a layer in fp32."""
        item, tokens = dtype.itemsize, self.rows * self.length
        linears_and_gelu = item * (WIDTH + 4 * WIDTH + WIDTH + 8 * WIDTH)
        norms_and_masks = 2 * WIDTH * 4 + (2 * WIDTH if self.dropout else 0)
        return self.layers * tokens * (linears_and_gelu + norms_and_masks + 4 * 12)


class Steps:
    """Forward and backward passes of an arm's layers.

    Args:
        net: holds the layers.
        batch: what they are given.
        dtype: float32, or bfloat16 by autocast.
    """

    def __init__(self, net: nn.Module, batch: Batch, dtype: torch.dtype) -> None:
        self.net, self.dtype, self.device = net, dtype, torch.device(batch.device)
        self.layers = [module for module in net.modules() if isinstance(module, BertLayer)]
        self.x, self.mask, self.dy = batch.tensors()

    def forward(self) -> Tensor:
        x = self.x + 0  # not a leaf: its bytes count, as those of another layer's output would
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            for layer in self.layers:
                x = layer(x, self.mask)
        return x

    def both(self) -> None:
        self.forward().backward(self.dy)

    def seconds(self) -> float:
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            self.both()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end) / 1000
        begin = time.perf_counter()
        self.both()
        return time.perf_counter() - begin

    def saved(self) -> int:
        with saved_storages(self.net) as storages:
            y = self.forward()
        y.backward(self.dy)
        return sum(storages.values())


def measure(
    arms: list[Arm], batch: Batch, dtype: torch.dtype, rounds: int, tell: Callable[[str], None]
) -> dict[Key, dict]:
    """Measures all arms in turn, round by round; the figures stand beside those of dense, which is the first."""
    dense = batch.encoder()
    steps: dict[Key, Steps] = {}
    found: dict[Key, dict] = {}
    for arm in (DENSE, *arms):
        for keep_frac in arm.keeps:
            steps[arm, keep_frac] = Steps(built(arm, keep_frac, dense).net, batch, dtype)
            found[arm, keep_frac] = {
                "saved_bytes": steps[arm, keep_frac].saved(),  # and the warm-up; gradients are there from here on
                "peak_bytes": peak_bytes(steps[arm, keep_frac].both, torch.device(batch.device)),
                "bytes_ratio": _without_float_masks(arm, keep_frac, dense, batch, dtype) / batch.dense_bytes(dtype),
            }
    times: dict[Key, list[float]] = {key: [] for key in steps}
    for number in range(rounds):
        for key, one in steps.items():
            times[key].append(one.seconds())
        tell(f"round {number + 1} of {rounds}: dense {times[DENSE, 1.0][-1]:.3f} s")
    base = found[DENSE, 1.0]
    for key, row in found.items():
        ratios = [mine / theirs for mine, theirs in zip(times[key], times[DENSE, 1.0], strict=True)]
        row["bytes_ratio_measured"] = row["saved_bytes"] / base["saved_bytes"]
        row["peak_ratio"] = row["peak_bytes"] / base["peak_bytes"]
        row["seconds"] = statistics.median(times[key])
        row["time_ratio"], row["time_ratio_least"], row["time_ratio_most"] = (
            statistics.median(ratios),
            min(ratios),
            max(ratios),
        )
    return found


def _without_float_masks(arm: Arm, keep_frac: float, dense: nn.Module, batch: Batch, dtype: torch.dtype) -> int:
    """Saved bytes with masks of one byte: a CPU's dropout saves floats, and keeps its attention from being fused."""
    quiet = Steps(built(arm, keep_frac, dense, dropout=False).net, batch, dtype)
    with saved_storages(quiet.net) as storages:
        quiet.forward()
    masks = 2 * batch.layers * batch.rows * batch.length * WIDTH
    return sum(storages.values()) + (masks if arm.noise and batch.dropout else 0)


class Fidelity:
    """Gradients of MiniLM on film reviews after some dense steps, dropout off; without the offline packages nothing.

    Args:
        steps: dense steps before the comparison.
        rows: sentences of a batch.
        device: cpu | cuda.
    """

    def __init__(self, steps: int, rows: int, device: str) -> None:
        try:
            folder, (self.texts, self.labels) = minilm_folder(), movie_reviews()
        except DataMissing:
            self.net = None
            return
        self.tokenizer, self.rows, self.device = AutoTokenizer.from_pretrained(folder), rows, device
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        torch.manual_seed(0)
        net = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, **off)
        self.net = net.train().to(device)
        optimizer = torch.optim.AdamW(self.net.parameters(), 5e-5)
        for number in range(1, steps + 1):
            optimizer.zero_grad()
            self.net(**self.batch(number)).loss.backward()
            optimizer.step()

    def batch(self, number: int) -> dict:
        part = slice(number * self.rows, (number + 1) * self.rows)
        tokens = self.tokenizer(
            list(self.texts[part]), padding=True, truncation=True, max_length=64, return_tensors="pt"
        )
        labels = torch.tensor([int(label) for label in self.labels[part]])
        return {name: one.to(self.device) for name, one in (*tokens.items(), ("labels", labels))}

    def __call__(self, arms: list[Arm], dtype: torch.dtype) -> dict[Key, dict]:
        """Returns cosine_dw, norm_dw and error_dx of the arms whose gradients are not dense's own."""
        if self.net is None:
            return {}
        data, found = self.batch(0), {}
        want = gradients(copy.deepcopy(self.net), data, dtype)
        for arm in arms:
            for keep_frac in arm.keeps if arm.shown and not arm.exact else ():
                found[arm, keep_frac] = compare(gradients(built(arm, keep_frac, self.net).net, data, dtype), want)
        return found


def gradients(net: nn.Module, data: dict, dtype: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """The gradient to the embeddings' output, and those of the linears' weights."""
    seen: list[Tensor] = []
    net.bert.embeddings.register_forward_hook(lambda module, args, y: seen.append(y) or y.retain_grad())
    with torch.autocast(data["labels"].device.type, dtype, enabled=dtype != torch.float32):
        loss = net(**data).loss
    loss.backward()
    weights = [p.grad for name, p in net.named_parameters() if "encoder" in name and p.dim() == 2]
    return seen[0].grad, weights


def compare(got: tuple[Tensor, list[Tensor]], want: tuple[Tensor, list[Tensor]]) -> dict:
    """The mean cosine over the matrices, the norm of all of them by dense's, the relative error of dX."""
    pairs = [(a.flatten().double(), b.flatten().double()) for a, b in zip(got[1], want[1], strict=True)]
    whole = [torch.cat(side) for side in zip(*pairs, strict=True)]
    return {
        "cosine_dw": statistics.mean(torch.cosine_similarity(a, b, dim=0).item() for a, b in pairs),
        "norm_dw": (whole[0].norm() / whole[1].norm()).item(),
        "error_dx": ((got[0] - want[0]).norm() / want[0].norm()).item(),
    }
