"""QuestionTask: the part of a text that answers a question (extractive question answering).

A context longer than a row becomes several windows that overlap by `stride` tokens (Devlin et al. 2019, section 4.2).
In training a window without the answer is taught none: both ends at the first token. In evaluation the best span of
all windows of a question is its answer; with `unanswerable`, none where the first token has the higher score.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics import MetricCollection

from keepfrac.errors import DataMissing, UserError
from keepfrac.settings import count, flag, settings
from keepfrac.settings import text as text_field
from keepfrac.tasks.base import Batch
from keepfrac.tasks.data.files import OwnFiles
from keepfrac.tasks.data.hub_data import hub_dataset
from keepfrac.tasks.data.squad import Question, check_answers, read_squad
from keepfrac.tasks.metrics.answers import AnswerScores, best_spans
from keepfrac.tasks.rows import Rows, Splits, completed, subset
from keepfrac.tasks.text import TextTask
from keepfrac.tasks.tokens import CHUNK, TokenRows, Tokens

NO_ANSWER = (0, 0)


@dataclass(frozen=True)
class Windows(TokenRows):
    """Windows of questions and contexts.

    Args:
        questions: number of the question of each window, (windows,).
        answers: first and last token of the answer, NO_ANSWER where it is not in the window, (windows, 2).
        offsets: first character in the context of each token and the one after its last, (tokens of all windows, 2);
            equal where a token is not of the context.
    """

    questions: np.ndarray
    answers: np.ndarray
    offsets: np.ndarray

    def __getitem__(self, index: int) -> tuple:
        part = slice(int(self.tokens.starts[index]), int(self.tokens.starts[index + 1]))
        return *self.tokens.row(index), int(self.questions[index]), self.answers[index], self.offsets[part]


class QuestionTask(TextTask):
    """Where in the text does the answer stand?

    A batch holds what that of any text does; labels, int64 (batch, 2): first and last token of the answer; questions,
    int64 (batch,), and offsets, int64 (batch, longest, 2), of the context's tokens.
    """

    @settings
    class Settings(TextTask.Settings):
        """The files and the windows."""

        train_file: str | None = text_field("training questions, SQuAD's json", null=True)
        validation_file: str | None = text_field("what chooses the best checkpoint; null: cut from train", null=True)
        test_file: str | None = text_field("what is reported; null: cut from train", null=True)
        path: str | None = text_field("dataset on the hub, owner/name; null: own files alone", null=True)
        stride: int = count("tokens that two windows of a context share", 0)
        longest_question: int = count("tokens of a question; the rest is cut", 4)
        longest_answer: int = count("most tokens of an answer")
        unanswerable: bool = flag("whether a question may have no answer, as in SQuAD 2")

        def check(self) -> None:
            room = self.max_length - self.longest_question - 4
            if room < 1:
                least = self.longest_question + 4 + self.stride
                raise self.error(
                    "max_length", f"allowed is more than {least}, which longest_question and stride take of it"
                )
            if self.stride >= room:
                raise self.error("stride", f"allowed is less than {room}, what max_length leaves for the context")

    settings: Settings
    head = "question_answering"
    needs_offsets = True
    problem = "question_answering"

    def __init__(self, settings: Settings):
        super().__init__(settings)
        self._numbered: list[tuple[str, list[str]]] = []

    # rows -----------------------------------------------------------------------------------------------------------

    def read(self) -> Splits:
        """Reads the files, or the hub, whose validation split is the test set; cuts what is missing from train."""
        files = OwnFiles.of(self.settings)
        read, source = self._own_files(files) or self._hub()
        none = [one.id for asked in read.values() for one in asked if not one.answers]
        if none and not self.settings.unanswerable:
            raise UserError(
                f"{source}: question {none[0]} has no answer ({len(none)} have none): task.unanswerable=true"
            )
        rows = {split: self._rows(asked) for split, asked in read.items()}
        train, validation, test, how = completed(rows, files.names if files.paths else None, "text_pair")
        chosen = subset(train, self.settings.rows, "text")
        return Splits(chosen, validation, test, source, how.replace("the text", "the context"), labels=None)

    def _own_files(self, files: OwnFiles) -> tuple[dict[str, list[Question]], str] | None:
        if "train" not in files.paths:
            if files.paths or self.settings.path is None:
                raise DataMissing(f"task {self.name}: type task.train_file=<a file of questions, SQuAD's json>")
            return None
        return {split: read_squad(path) for split, path in files.paths.items()}, files.source

    def _hub(self) -> tuple[dict[str, list[Question]], str]:
        path = str(self.settings.path)
        dataset = hub_dataset(path, None)
        if dataset is None:
            raise DataMissing(
                f"task {self.name}: the model hub ({path}) does not answer; type task.train_file=<SQuAD's train json>"
                " task.test_file=<its dev json>"
            )
        return {"train": _of_hub(dataset, "train", path), "test": _of_hub(dataset, "validation", path)}, f"hub {path}"

    def _rows(self, asked: list[Question]) -> Rows:
        start = len(self._numbered)
        self._numbered += [(one.context, one.answers or [""]) for one in asked]
        return Rows(
            {
                "text": [one.question for one in asked],
                "text_pair": [one.context for one in asked],
                "answers": [one.answers for one in asked],
                "starts": [one.starts for one in asked],
                "number": list(range(start, len(self._numbered))),
            }
        )

    # tokens ---------------------------------------------------------------------------------------------------------

    def batches_per_epoch(self, world: int) -> int:
        """Returns how many training batches of windows each of `world` processes takes in an epoch."""
        return max(1, len(self.encoded("train")) // (self.batch_size * world))

    def encode(self, rows: Rows) -> Windows:
        """Returns the windows of `rows`."""
        parts = [self._windows(rows.take(range(i, min(i + CHUNK, len(rows))))) for i in range(0, len(rows), CHUNK)]
        lengths = np.concatenate([part["lengths"] for part in parts])
        types = None if parts[0]["types"] is None else np.concatenate([part["types"] for part in parts])
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = Tokens(np.concatenate([part["ids"] for part in parts]), types, starts, sum(p["cut"] for p in parts))
        return Windows(
            tokens, *(np.concatenate([p[name] for p in parts]) for name in ("numbers", "answers", "offsets"))
        )

    def _windows(self, rows: Rows) -> dict[str, Any]:
        own = self.settings
        asked = [self._shortened(question) for question in rows["text"]]
        coded = self.tokenizer(
            asked,
            rows["text_pair"],
            truncation="only_second",
            max_length=own.max_length,
            stride=own.stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        of = np.asarray(coded["overflow_to_sample_mapping"])
        offsets, answers = [], []
        for window, row in enumerate(of):
            ours = np.array([part == 1 for part in coded.encodings[window].sequence_ids])
            offsets.append(np.asarray(coded["offset_mapping"][window]).reshape(-1, 2) * ours[:, None])
            answers.append(_answer_in(offsets[-1], rows["answers"][row], rows["starts"][row]))
        types = coded.get("token_type_ids") if "token_type_ids" in self.tokenizer.model_input_names else None
        return {
            "ids": np.concatenate([np.asarray(ids, np.int32) for ids in coded["input_ids"]]),
            "types": None if types is None else np.concatenate([np.asarray(kinds, np.int8) for kinds in types]),
            "lengths": [len(ids) for ids in coded["input_ids"]],
            "numbers": np.asarray(rows["number"])[of],
            "answers": np.asarray(answers),
            "offsets": np.concatenate(offsets),
            "cut": sum(short != whole for short, whole in zip(asked, rows["text"], strict=True)),
        }

    def _shortened(self, question: str) -> str:
        """Returns a question of at most `longest_question` tokens."""
        most = self.settings.longest_question
        if len(question.encode()) <= most:  # a token stands for a byte at least
            return question
        coded = self.tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        # several tokens may stand for one character, which then goes whole
        return question if len(coded) <= most else question[: min(coded[most - 1][1], coded[most][0])]

    def collate(self, items: list) -> Batch:
        """Pads windows to the longest of them."""
        batch = self.padded([(ids, types) for ids, types, *_ in items])
        offsets = torch.zeros(*batch["input_ids"].shape, 2, dtype=torch.long)
        for row, (*_, places) in enumerate(items):
            offsets[row, : len(places)] = torch.from_numpy(places)
        return {
            **batch,
            "labels": torch.from_numpy(np.stack([answer for *_, answer, _ in items])),
            "questions": torch.tensor([question for _, _, question, *_ in items]),
            "offsets": offsets,
        }

    def inputs(self, batch: Batch) -> Batch:
        return {name: value for name, value in super().inputs(batch).items() if name not in {"questions", "offsets"}}

    # loss -----------------------------------------------------------------------------------------------------------

    def loss(self, outputs, batch: Batch) -> Tensor:
        """Returns the mean over windows of the cross entropies of first and last token, and the mean of the two."""
        return self.row_losses(outputs, batch).mean()

    def row_losses(self, outputs, batch: Batch) -> Tensor:
        """Returns the loss of each window, (batch,)."""
        there = batch["attention_mask"].bool()
        both = ((outputs.start_logits, batch["labels"][:, 0]), (outputs.end_logits, batch["labels"][:, 1]))
        found = [
            cross_entropy(logits.float().masked_fill(~there, -torch.inf), wanted, reduction="none")
            for logits, wanted in both
        ]
        return (found[0] + found[1]) / 2

    def predict(self, outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns of each window the score of its best span, of no answer, and the span's characters; its question."""
        starts, ends, offsets = outputs.start_logits.float(), outputs.end_logits.float(), batch["offsets"]
        allowed = offsets[..., 1] > offsets[..., 0]
        score, first, last = best_spans(starts, ends, allowed, self.settings.longest_answer)
        rows = torch.arange(len(score), device=score.device)
        none = starts[:, 0] + ends[:, 0] if self.settings.unanswerable else torch.full_like(score, -torch.inf)
        found = (score.double(), none.double(), offsets[rows, first, 0].double(), offsets[rows, last, 1].double())
        return torch.stack(found, dim=1), batch["questions"]

    @property
    def num_labels(self) -> int:
        """Two numbers a token: how likely the answer begins there, and ends there."""
        return 2

    def metrics(self, split: str) -> MetricCollection:
        return MetricCollection({"answers": AnswerScores(self.metric_names, self._answer)})

    def _answer(self, number: int, first: int, end: int) -> tuple[str, list[str]]:
        context, right = self._numbered[number]
        return context[first:end], right


def _answer_in(offsets: np.ndarray, answers: list[str], starts: list[int]) -> tuple[int, int]:
    """Returns first and last token of the first answer; NO_ANSWER where the window does not hold all of it."""
    if not answers:
        return NO_ANSWER
    begin, end = starts[0], starts[0] + len(answers[0])
    inside = np.flatnonzero((offsets[:, 1] > begin) & (offsets[:, 0] < end))
    whole = len(inside) and offsets[inside[0], 0] <= begin and offsets[inside[-1], 1] >= end
    return (int(inside[0]), int(inside[-1])) if whole else NO_ANSWER


def _of_hub(dataset, split: str, path: str) -> list[Question]:
    if split not in dataset:
        raise UserError(f"hub {path} has no split {split!r}; there are {', '.join(dataset)}")
    part = dataset[split]
    names = ("id", "question", "context", "answers")
    missing = [name for name in names if name not in part.column_names]
    if missing:
        raise UserError(f"hub {path}, {split}: no column {missing[0]!r}; there are {', '.join(part.column_names)}")
    found = [
        Question(str(number), question, context, list(answers["text"]), list(answers["answer_start"]))
        for number, question, context, answers in zip(*(part[name] for name in names), strict=True)
    ]
    for question in found:
        check_answers(question, f"hub {path}, {split}")
    return found
