"""Questions on a text whose answer is a part of it: SQuAD's json, v1.1 and v2, and the hub's columns.

json: {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers": [{"text", "answer_start"}], and in v2
"is_impossible"}]}]}]}. A question without answers has none in its text; what v2 calls plausible answers is not read.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from keepfrac.errors import UserError
from keepfrac.tasks.data.files import read_json, read_text


@dataclass(frozen=True)
class Question:
    """One question.

    Args:
        id: as the corpus numbers it.
        question: the text asked.
        context: the text that holds the answer.
        answers: the answers that count as right, parts of the context; none: it has no answer there.
        starts: the first character of each.
    """

    id: str
    question: str
    context: str
    answers: list[str]
    starts: list[int]


def read_squad(path: Path) -> list[Question]:
    """Reads a file of questions.

    Raises:
        UserError: the file is no such json, or an answer does not stand in its context where the file says.
    """
    content = read_json(read_text(path), path)
    try:
        found = list(_questions(content))
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path}: {error!r}; wanted is SQuAD's json: data, paragraphs, context, qas, question, answers"
        ) from None
    if not found:
        raise UserError(f"{path}: holds no question")
    for question in found:
        check_answers(question, str(path))
    return found


def _questions(content: Mapping) -> Iterator[Question]:
    for article in content["data"]:
        for paragraph in article["paragraphs"]:
            for asked in paragraph["qas"]:
                answers = [] if asked.get("is_impossible") else asked["answers"]
                texts, starts = [one["text"] for one in answers], [int(one["answer_start"]) for one in answers]
                yield Question(str(asked["id"]), asked["question"], paragraph["context"], texts, starts)


def check_answers(question: Question, where: str) -> None:
    """Refuses what is no text, and an answer that is not the part of the context that begins where it says.

    Raises:
        UserError: names the question.
    """
    texts = [("question", question.question), ("context", question.context)]
    for name, text in [*texts, *(("answer", one) for one in question.answers)]:
        if not isinstance(text, str):
            raise UserError(f"{where}, question {question.id}: {name} holds {text!r:.60}; allowed is text")
    if "" in question.answers:
        raise UserError(f"{where}, question {question.id}: an answer without text; a question without one has none")
    for text, start in zip(question.answers, question.starts, strict=True):
        there = question.context[start : start + len(text)]
        if there != text:
            raise UserError(
                f"{where}, question {question.id}: the answer {text[:40]!r} does not stand at character {start} of its"
                f" context ({there[:40]!r} does)"
            )
