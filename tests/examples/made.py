"""A small stock model and made-up rows for the examples: the label says whether token 7 is in the sentence."""

import torch
from torch import Tensor

from tests.tiny import stock


def model(**given):
    """Returns a two-layer BERT with a classifier of two labels, the same each time."""
    return stock(**{"vocab_size": 60, "num_labels": 2, "seed": 1, "attn_implementation": "sdpa", **given})


def rows(count: int = 32, length: int = 12) -> list[dict[str, Tensor]]:
    """Returns rows as a tokenizer and a data set give them: padded, each with its label."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for number in range(count):
        ids = torch.randint(8, 60, (length,), generator=generator)
        real = int(torch.randint(5, length + 1, (1,), generator=generator))
        ids[number % 4 + 1] = 7 if number % 2 else 9
        mask = (torch.arange(length) < real).long()
        found.append({"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor(number % 2)})
    return found


def batches(count: int = 8, size: int = 8) -> list[dict[str, Tensor]]:
    """Returns whole batches, the rows again and again."""
    all_rows = rows()
    chosen = [[all_rows[(number * size + k) % len(all_rows)] for k in range(size)] for number in range(count)]
    return [{name: torch.stack([row[name] for row in some]) for name in some[0]} for some in chosen]
