"""TokenTask: a tag for each word of a sentence, such as named entities in BIO.

The order of sources: the user's own files (`train_file`), a folder of the corpus (`data_dir`, or an environment
variable such as WNUT17_DATA), the hub or its local cache, one error.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection

from keepfrac.errors import DataMissing, UserError
from keepfrac.settings import Kind, mapping, settings
from keepfrac.settings import text as text_field
from keepfrac.tasks.base import Batch, token_sums
from keepfrac.tasks.data.conll import Sentence, Tagged, names_of, read_tagged, to_bio
from keepfrac.tasks.data.files import OwnFiles
from keepfrac.tasks.data.hub_data import hub_dataset
from keepfrac.tasks.masking import IGNORED
from keepfrac.tasks.metrics.entities import END, EntityScores
from keepfrac.tasks.rows import Rows, Splits, completed, subset
from keepfrac.tasks.text import TextTask
from keepfrac.tasks.tokens import CHUNK, TokenRows

FILES = ("train", "validation", "test")
FILE_NAME = Kind(lambda value: isinstance(value, str) and bool(value), "a file's name")
Source = tuple[dict[str, Tagged], str, Mapping[str, str] | None]
"""What was read of each set, where from in words, and what the user calls each set (None: it is the hub's)."""
LOST = -1  # a word without a token: the row was cut before it, or the tokenizer drops its characters


@dataclass(frozen=True)
class TaggedTokens(TokenRows):
    """Tokens of rows, and the tags of their words.

    Args:
        first: index of the first token of each word, LOST where it has none: an array (words,) a row.
        tags: number of the tag of each word: an array (words,) a row.
    """

    first: list[np.ndarray]
    tags: list[np.ndarray]

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, np.ndarray]:
        return *self.tokens.row(index), self.first[index], self.tags[index]


class TokenTask(TextTask):
    """Which words are entities, and of what type?

    The first token of a word carries its tag; the others have no loss. A word whose tokens were cut off counts as
    tagged O, so that cutting rows never hides an entity.

    A batch holds what that of any text does; labels, int64 (batch, longest): the tag at the first token of a word,
    IGNORED elsewhere; tags and first, int64 (batch, most words + 1): the tag and the first token of each word, then
    END, then IGNORED.
    """

    @settings
    class Settings(TextTask.Settings):
        """Where the sentences are read."""

        train_file: str | None = text_field("training sentences: CoNLL columns, or .jsonl", null=True)
        validation_file: str | None = text_field("what chooses the best checkpoint; null: cut from train", null=True)
        test_file: str | None = text_field("what is reported; null: cut from train", null=True)
        data_dir: str | None = text_field(
            "the folder with the three files of the corpus; null: the folder that the environment variable <NAME>_DATA"
            " names, else the hub",
            null=True,
        )
        files: Mapping | None = mapping(
            "train, validation and test -> the file's name in the corpus' folder", FILE_NAME, *FILES, null=True
        )
        path: str | None = text_field("dataset on the hub, owner/name", null=True)
        revision: str | None = text_field(
            "branch on the hub that holds the parquet copy; null: the main one", null=True
        )

        def check(self) -> None:
            if not self.train_file and (self.validation_file or self.test_file):
                raise self.error("train_file", "task.validation_file and task.test_file need it")

    settings: Settings
    head = "token_classification"
    needs_offsets = True
    problem = "token_classification"

    # rows -----------------------------------------------------------------------------------------------------------

    def read(self) -> Splits:
        """Reads the first source there is; a split without a file is cut from train by a hash of the text."""
        read, source, names_of_sets = self._own_files() or self._folder() or self._hub()
        names = names_of(read["train"].tags())
        if len(names) == 1:
            raise UserError(f"{source}: the training sentences hold no entity, every tag is O")
        rows = {split: _rows(tagged, names) for split, tagged in read.items()}
        train, validation, test, how = completed(rows, names_of_sets)
        repaired = {split: tagged.repaired for split, tagged in read.items() if tagged.repaired}
        notes = {"tags_repaired": repaired} if repaired else {}
        return Splits(subset(train, self.settings.rows), validation, test, source, how, names, notes=notes)

    def _own_files(self) -> Source | None:
        files = OwnFiles.of(self.settings)
        return (_read(files.paths), files.source, files.names) if files.paths else None

    def _folder(self) -> Source | None:
        files, variable = self.settings.files, f"{self.settings.name.upper()}_DATA"
        root = files and (self.settings.data_dir or os.environ.get(variable))
        if not files or not root:
            return None
        folder = Path(root).expanduser()
        missing = [str(files[split]) for split in FILES if not (folder / files[split]).is_file()]
        if missing:
            raise DataMissing(f"{folder}: no {', '.join(missing)} there (task.data_dir, or {variable})")
        paths = {split: folder / files[split] for split in FILES}
        return _read(paths), f"folder {folder}", {split: str(path) for split, path in paths.items()}

    def _hub(self) -> Source:
        own, variable = self.settings, f"{self.settings.name.upper()}_DATA"
        if own.path is None:
            raise DataMissing(
                f"task {self.name}: type task.train_file=<a file of CoNLL columns, or .jsonl with tokens and tags>"
            )
        dataset = hub_dataset(own.path, None, own.revision)
        if dataset is None:
            raise DataMissing(
                f"task {self.name}: the model hub ({own.path}) does not answer; type task.data_dir=<your folder that"
                f" holds {', '.join(map(str, (own.files or {}).values()))}>, or set {variable} to it"
            )
        return {split: _of_hub(dataset, split, own.path) for split in FILES}, f"hub {own.path}", None

    # tokens ---------------------------------------------------------------------------------------------------------

    def encode(self, rows: Rows) -> TaggedTokens:
        """Returns the tokens of `rows`, and tag and first token of each word."""
        first = [one for start in range(0, len(rows), CHUNK) for one in self._first(rows, start)]
        return TaggedTokens(self.tokens(rows), first, [np.asarray(tags) for tags in rows["label"]])

    def _first(self, rows: Rows, start: int) -> list[np.ndarray]:
        """Returns the first token of each word, of the rows of a chunk."""
        part = slice(start, start + CHUNK)
        coded = self.tokenizer(
            rows["text"][part], truncation=True, max_length=self.settings.max_length, return_offsets_mapping=True
        )
        return [
            first_tokens(words, np.asarray(offsets).reshape(-1, 2))
            for words, offsets in zip(rows["words"][part], coded["offset_mapping"], strict=True)
        ]

    def collate(self, items: list) -> Batch:
        """Pads rows to the longest of them."""
        batch = self.padded([(ids, types) for ids, types, *_ in items])
        most = max(len(tags) for *_, tags in items) + 1
        labels = torch.full(batch["input_ids"].shape, IGNORED)
        tags, first = torch.full((len(items), most), IGNORED), torch.full((len(items), most), LOST)
        for row, (_, _, tokens, truth) in enumerate(items):
            words, there = len(truth), tokens != LOST
            labels[row, tokens[there]] = torch.from_numpy(truth[there])
            tags[row, :words], tags[row, words] = torch.from_numpy(truth), END
            first[row, :words] = torch.from_numpy(tokens)
        return {**batch, "labels": labels, "tags": tags, "first": first}

    def inputs(self, batch: Batch) -> Batch:
        return {name: value for name, value in super().inputs(batch).items() if name not in {"tags", "first"}}

    # loss -----------------------------------------------------------------------------------------------------------

    def loss(self, outputs, batch: Batch) -> Tensor:
        """Returns the mean cross entropy of the words' first tokens; 0 where there is none."""
        there = batch["labels"] != IGNORED
        logits = outputs.logits[there].float()
        return cross_entropy(logits, batch["labels"][there], reduction="sum") / max(1, len(logits))

    def row_losses(self, outputs, batch: Batch) -> Tensor:
        """Returns the sum of the cross entropies of each row's words, (rows,)."""
        there = batch["labels"] != IGNORED
        logits = outputs.logits[there].float()
        return token_sums(cross_entropy(logits, batch["labels"][there], reduction="none"), there)

    def num_loss_terms(self, batch: Batch) -> int:
        """Returns how many words have a token: what the loss of a batch is a mean over."""
        return int((batch["labels"] != IGNORED).sum())

    def predict(self, outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns predicted and true tags of whole sentences, (words + sentences,), END after each."""
        tags, first = batch["tags"], batch["first"]
        called = outputs.logits.argmax(-1).gather(1, first.clamp(min=0)).where(first != LOST, 0)
        called = called.where(tags != END, END)
        return called[tags != IGNORED], tags[tags != IGNORED]

    def metrics(self, split: str) -> MetricCollection:
        assert self.labels is not None
        return MetricCollection({"entities": EntityScores(self.metric_names, self.labels)})


def first_tokens(words: list[str], offsets: np.ndarray) -> np.ndarray:
    """Returns the index of the first token of each word, (words,) int64; LOST where it has none.

    Args:
        words: which stand in the text with one blank between them.
        offsets: first character of each token, and the one after its last, (tokens, 2); equal for special tokens.
    """
    ends = np.cumsum([len(word) + 1 for word in words])
    tokens = np.flatnonzero(offsets[:, 1] > offsets[:, 0])
    word_of = np.searchsorted(ends, offsets[tokens, 1] - 1, side="right")  # a token may begin with the blank before it
    found = np.full(len(words), LOST)
    found[word_of[::-1]] = tokens[::-1]  # the first one is written last
    return found


def _read(paths: Mapping[str, Path]) -> dict[str, Tagged]:
    return {split: read_tagged(path) for split, path in paths.items()}


def _rows(tagged: Tagged, names: tuple[str, ...]) -> Rows:
    """Returns rows with numbers of tags; refuses a type that training has none of."""
    numbers = {name: number for number, name in enumerate(names)}
    for sentence in tagged.sentences:
        for tag in sentence.tags:
            if tag not in numbers:
                types = ", ".join(name[2:] for name in names[1::2])
                raise UserError(f"{sentence.where}: type {tag[2:]!r} is not among those of the training set, {types}")
    return Rows(
        {
            "text": [" ".join(sentence.words) for sentence in tagged.sentences],
            "words": [sentence.words for sentence in tagged.sentences],
            "label": [[numbers[tag] for tag in sentence.tags] for sentence in tagged.sentences],
        }
    )


def _of_hub(dataset, split: str, where: str) -> Tagged:
    """Returns the sentences of one split: columns `tokens` and `ner_tags`, the tags' names in its features."""
    if split not in dataset:
        raise UserError(f"hub {where} has no split {split!r}; there are {', '.join(dataset)}")
    part = dataset[split]
    missing = [column for column in ("tokens", "ner_tags") if column not in part.column_names]
    if missing:
        raise UserError(f"hub {where}, {split}: no column {missing[0]!r}; there are {', '.join(part.column_names)}")
    names = part.features["ner_tags"].feature.names
    sentences, repaired = [], 0
    for number, (words, tags) in enumerate(zip(part["tokens"], part["ner_tags"], strict=True)):
        place = f"hub {where}, {split}, row {number}"
        plain, mended = to_bio([names[tag] for tag in tags], [place] * len(tags))
        repaired += mended
        if words:
            sentences.append(Sentence(list(words), plain, place))
    return Tagged(sentences, repaired)
