"""Replacements of words from a masked language model."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from keepfrac.augmentation.words import Sentence, is_word

TOKENS = 8192  # of one forward pass: fixed, because logits are rounded differently in another batch


class MaskedWords:
    """The likeliest whole words in the place of a masked one.

    The model reads `[CLS] masked sentence [SEP] sentence [SEP]`, as in TinyBERT: it sees the word that it replaces.

    Args:
        net: a masked language model, in eval mode.
        tokenizer: a WordPiece tokenizer.
        device: "cpu" or "cuda".
        dtype: in which the model computes.
    """

    def __init__(self, net, tokenizer, device: str, dtype: torch.dtype):
        self.net, self.tokenizer, self.device = net.to(device=device, dtype=dtype), tokenizer, device
        self.vocabulary = {number: word for word, number in tokenizer.get_vocab().items() if is_word(word)}
        self.limit = (min(net.config.max_position_embeddings, tokenizer.model_max_length) - 3) // 2
        self._positions = torch.empty(0, dtype=torch.long)
        net.base_model.register_forward_hook(self._keep_masked)

    def fits(self, position: int) -> bool:
        """Returns whether the model can see the piece at `position` of a sentence."""
        return position < self.limit

    @torch.inference_mode()
    def predict(self, asked: Sequence[tuple[Sentence, int]], count: int) -> list[tuple[str, ...]]:
        """Returns the `count` likeliest words in the place of each (sentence, position of a piece), without its own."""
        found: list[tuple[str, ...]] = [()] * len(asked)
        most = min(count + 3, len(self.vocabulary))  # its own is among them in up to three spellings
        for batch in _batches([self._length(sentence) for sentence, _ in asked]):
            best = self._logits([asked[i] for i in batch]).topk(most).indices.tolist()
            for i, numbers in zip(batch, best, strict=True):
                sentence, position = asked[i]
                own = self.vocabulary[sentence.ids[position]].lower()
                words = (self.vocabulary[number] for number in numbers)
                found[i] = tuple(itertools.islice((word for word in words if word.lower() != own), count))
        return found

    def _length(self, sentence: Sentence) -> int:
        return 2 * min(len(sentence.ids), self.limit) + 3

    def _logits(self, asked: Sequence[tuple[Sentence, int]]) -> Tensor:
        """Returns the logits of the masked places, (asked, vocabulary), -inf at all but whole words."""
        batch = self._inputs(asked)
        self._positions = torch.tensor([position + 1 for _, position in asked], device=self.device)
        logits = self.net(**batch).logits[:, 0].float()
        allowed = torch.zeros(logits.shape[1], dtype=torch.bool, device=self.device)
        allowed[list(self.vocabulary)] = True
        logits[:, ~allowed] = -torch.inf
        return logits

    def _inputs(self, asked: Sequence[tuple[Sentence, int]]) -> dict[str, Tensor]:
        special = self.tokenizer
        rows, types = [], []
        for sentence, position in asked:
            ids = sentence.ids[: self.limit]
            masked = [*ids[:position], special.mask_token_id, *ids[position + 1 :]]
            first, second = [special.cls_token_id, *masked, special.sep_token_id], [*ids, special.sep_token_id]
            rows.append(torch.tensor(first + second))
            types.append(torch.tensor([0] * len(first) + [1] * len(second)))
        batch = {
            "input_ids": pad_sequence(rows, batch_first=True, padding_value=special.pad_token_id or 0),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
        }
        if "token_type_ids" in special.model_input_names:
            batch["token_type_ids"] = pad_sequence(types, batch_first=True)
        return {name: value.to(self.device) for name, value in batch.items()}

    def _keep_masked(self, body, arguments, output):
        """Leaves the head the masked places alone: logits of all would be a hundred times the work."""
        hidden = output.last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        output.last_hidden_state = hidden[rows, self._positions][:, None]
        return output


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yields the indices of rows of like lengths, TOKENS at most, padding included."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batch and lengths[i] * (len(batch) + 1) > TOKENS:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
