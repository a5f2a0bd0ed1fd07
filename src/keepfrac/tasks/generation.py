"""GenerationTask: a causal language model that verbalises a meaning representation (MR).

It is trained on the reference alone: the prompt's tokens and the padding carry no loss, the end token does, so that
the model learns to stop. Training rows are padded on the right, prompts to generate from on the left. Validation and
test generate once for each MR, by beam search, and are scored against all its references; their loss is that of the
first reference, by teacher forcing.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection

from keepfrac.settings import count, number, settings, share, text
from keepfrac.tasks.base import Batch, Task, token_sums
from keepfrac.tasks.metrics.text import SCORES, TextScores, check_installed
from keepfrac.tasks.prompts import Written, end_token, write
from keepfrac.tasks.rows import Rows

NO_LOSS = -100


class GenerationTask(Task):
    """Text from an MR. Rows have `text` (the MR) and `reference` or `references`, these with `number`.

    A batch holds input_ids, attention_mask and labels (tokens of the reference, -100 elsewhere), int64 (batch,
    length); to generate from, also prompt_ids and prompt_mask (batch, longest prompt) and numbers (batch,).
    """

    @settings
    class Settings(Task.Settings):
        """The prompt, and how texts are generated."""

        prompt: str = text("what the model reads, with {meaning} in it; the text follows after a blank")
        max_new_tokens: int = count("most tokens of a generated text, the end token included")
        beams: int = count("beams of the search; 1: greedy")
        length_penalty: float = number(
            "exponent of the length by which a beam's score is divided; above 0 favours long texts", -math.inf
        )
        no_repeat: int = count("no run of so many tokens may stand twice in a generated text; 0: any may", 0)
        label_smoothing: float = share("label smoothing of the training loss", "[)")

        def check(self) -> None:
            if "{meaning}" not in self.prompt:
                raise self.error("prompt", "it must have {meaning} in it")
            if self.max_new_tokens >= self.max_length:
                raise self.error("max_new_tokens", f"must be less than task.max_length={self.max_length}")

    settings: Settings
    head = "causal_lm"
    problem = "generation"
    generates = True

    def __init__(self, settings: Settings):
        super().__init__(settings)
        check_installed(self.metric_names)
        self.search: dict[str, float] = {"num_beams": settings.beams}
        if settings.beams > 1:
            self.search["length_penalty"] = float(settings.length_penalty)
        self.generated: dict[int, str] = {}
        self._end = self._pad = 0

    def training_texts(self) -> list[str]:
        """Returns the prompts and the references of the training rows, which a vocabulary may be built from."""
        train = self.splits.train
        return [*map(self._prompt_of, dict.fromkeys(train["text"])), *train["reference"]]

    @abstractmethod
    def references(self, number: int) -> Sequence[str]:
        """Returns the references of an MR by its number."""

    # encoding -------------------------------------------------------------------------------------------------------

    def use(self, tokenizer) -> None:
        super().use(tokenizer)
        self._end = end_token(tokenizer)
        self._pad = self._end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.__dict__.pop("_generation", None)  # it names both

    def encode(self, rows: Rows) -> Written:
        """Returns the tokens of `rows`: of each pair, or of each MR with its first reference."""
        assert self.tokenizer is not None, "use(tokenizer) comes first"
        training = "reference" in rows
        texts = rows["reference"] if training else [some[0] for some in rows["references"]]
        prompts = list(map(self._prompt_of, rows["text"]))
        longest = self.settings.max_new_tokens
        numbers = [-1] * len(rows) if training else rows["number"]
        before, after, truncated = write(self.tokenizer, prompts, texts, self.settings.max_length - longest, longest)
        return Written(before, after, numbers, truncated)

    def _prompt_of(self, mr: str) -> str:
        return self.settings.prompt.replace("{meaning}", mr)

    def collate(self, items: list) -> Batch:
        """Pads rows on the right, and prompts to generate from on the left."""
        whole = [torch.from_numpy(part) for prompt, text, _ in items for part in (prompt, text)]
        rows = [torch.cat(pair) for pair in zip(whole[::2], whole[1::2], strict=True)]
        wanted = [
            row.clone().index_fill_(0, torch.arange(len(p)), NO_LOSS)
            for row, (p, _, _) in zip(rows, items, strict=True)
        ]
        batch = {
            "input_ids": _padded(rows, self._pad, "right"),
            "attention_mask": _padded([torch.ones_like(row) for row in rows], 0, "right"),
            "labels": _padded(wanted, NO_LOSS, "right"),
        }
        if items[0][2] < 0:
            return batch
        prompts = whole[::2]
        return batch | {
            "prompt_ids": _padded(prompts, self._pad, "left"),
            "prompt_mask": _padded([torch.ones_like(row) for row in prompts], 0, "left"),
            "numbers": torch.tensor([number for _, _, number in items]),
        }

    def inputs(self, batch: Batch) -> Batch:
        """Returns the whole rows: what teacher forcing reads."""
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    # loss and texts -------------------------------------------------------------------------------------------------

    def loss(self, outputs, batch: Batch) -> Tensor:
        """Returns the cross entropy of the references' tokens, a mean over tokens, in float32."""
        return self._token_losses(outputs, batch, "mean")

    def row_losses(self, outputs, batch: Batch) -> Tensor:
        """Returns the sum of the cross entropies of each reference's tokens, (rows,), in float32."""
        return token_sums(self._token_losses(outputs, batch, "none"), batch["labels"][:, 1:] != NO_LOSS)

    def _token_losses(self, outputs, batch: Batch, reduction: str) -> Tensor:
        wanted = batch["labels"][:, 1:]
        counts = wanted != NO_LOSS
        smoothing = self.settings.label_smoothing if torch.is_grad_enabled() else 0.0  # validation's is the plain one
        logits = outputs.logits[:, :-1][counts].float()  # of what counts alone: a vocabulary is wide
        return cross_entropy(logits, wanted[counts], label_smoothing=smoothing, reduction=reduction)

    def num_loss_terms(self, batch: Batch) -> int:
        """Returns how many tokens the loss of a batch is a mean over."""
        return int((batch["labels"][:, 1:] != NO_LOSS).sum())

    def predict(self, outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Refuses: texts come from `generate`."""
        raise NotImplementedError

    def generate(self, net, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the tokens of a text for each prompt (batch, max_new_tokens), and the numbers of the MRs."""
        prompts = batch["prompt_ids"]
        found = net.generate(
            input_ids=prompts,
            attention_mask=batch["prompt_mask"],
            generation_config=self._generation,
            logits_processor=self._processors(prompts.shape[1]),
        )
        tokens = found.new_full((len(found), self.settings.max_new_tokens), self._end)
        new = found[:, prompts.shape[1] :]
        tokens[:, : new.shape[1]] = new
        return tokens, batch["numbers"]

    @cached_property
    def _generation(self):
        from transformers import GenerationConfig

        return GenerationConfig(
            max_new_tokens=self.settings.max_new_tokens,
            do_sample=False,
            eos_token_id=self._end,
            pad_token_id=self._pad,
            **self.search,
        )

    def _processors(self, start: int) -> list:
        """Returns the ban on repeated runs of tokens in what is generated: transformers' own bans the prompt's too."""
        from transformers import NoRepeatNGramLogitsProcessor

        if not self.settings.no_repeat:
            return []
        ban = NoRepeatNGramLogitsProcessor(self.settings.no_repeat)
        return [lambda input_ids, scores: ban(input_ids[:, start:], scores)]

    def metrics(self, split: str) -> MetricCollection:
        """Returns the scores of generated texts."""
        return MetricCollection({"texts": TextScores(self.metric_names, self._read)})

    def default_metrics(self) -> tuple[str, ...]:
        """Returns all metrics."""
        return tuple(SCORES)

    def _read(self, tokens: Tensor, numbers: Tensor) -> tuple[list[str], list[Sequence[str]]]:
        """Returns texts and their references, and keeps the texts for `examples`."""
        texts = [self._text(row) for row in tokens.tolist()]
        self.generated |= dict(zip(numbers.tolist(), texts, strict=True))
        return texts, [self.references(number) for number in numbers.tolist()]

    def _text(self, tokens: list[int]) -> str:
        assert self.tokenizer is not None
        end = tokens.index(self._end) if self._end in tokens else len(tokens)
        return " ".join(self.tokenizer.decode(tokens[:end], skip_special_tokens=True).split())

    def examples(self) -> dict[str, list[dict]]:
        """Returns what was generated last: by split, records of meaning (the MR), generated and references."""
        return {
            split: [
                {"meaning": mr, "generated": self.generated[number], "references": list(references)}
                for mr, number, references in zip(rows["text"], rows["number"], rows["references"], strict=True)
                if number in self.generated
            ]
            for split, rows in self.splits.named().items()
            if "references" in rows
        }


def _padded(rows: list[Tensor], value: int, side: str) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value, padding_side=side)
