"""What a masked language model puts in the place of words."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

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
        """Whether the model can see the piece at `position` of a sentence."""
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
        rows, halves = [], []
        for sentence, position in asked:
            ids = sentence.ids[: self.limit]
            masked = [*ids[:position], special.mask_token_id, *ids[position + 1 :]]
            rows.append([special.cls_token_id, *masked, special.sep_token_id, *ids, special.sep_token_id])
            halves.append(len(ids) + 2)
        longest = max(map(len, rows))
        ids_of = torch.full((len(rows), longest), special.pad_token_id or 0)
        mask, types = torch.zeros_like(ids_of), torch.zeros_like(ids_of)
        for i, (row, half) in enumerate(zip(rows, halves, strict=True)):
            ids_of[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
            types[i, half : len(row)] = 1
        batch = {"input_ids": ids_of, "attention_mask": mask}
        if "token_type_ids" in special.model_input_names:
            batch["token_type_ids"] = types
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
