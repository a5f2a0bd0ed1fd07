"""The files that a user names: of whatever task, no set may be a part of another one."""

import json

import pytest

from keepfrac.errors import UserError


def question(number):
    context = f"the red door {number}"
    answers = [{"text": "red", "answer_start": 4}]
    asked = {"id": str(number), "question": f"is {number} good", "answers": answers}
    return {"paragraphs": [{"context": context, "qas": [asked]}]}


def squad(numbers):
    return json.dumps({"data": [question(number) for number in numbers]})


def lines(row):
    return lambda numbers: "".join(json.dumps(row(number)) + "\n" for number in numbers)


TASKS = {  # task -> the end of a file's name, and what is in it
    "csv": ("jsonl", lines(lambda i: {"text": f"text {i}", "label": ["no", "yes"][i % 2]})),
    "similarity": ("jsonl", lines(lambda i: {"text": f"text {i}", "text_pair": "song", "score": i / 40})),
    "embedding": ("jsonl", lines(lambda i: {"text": f"text {i}", "text_pair": f"pair {i}"})),
    "reranking": ("jsonl", lines(lambda i: {"query": "song", "passage": f"text {i}", "relevance": i % 2})),
    "ner": ("conll", lambda numbers: "".join(f"text{i}\tB-thing\n\n" for i in numbers)),
    "qa": ("json", squad),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_set_that_is_a_part_of_another_one_is_refused(make_task, tmp_path, task):
    end, written = TASKS[task]
    parts = {"train": range(20), "validation": range(20, 26), "test": range(3, 9), "other": range(30, 36)}
    paths = {name: tmp_path / f"{name}.{end}" for name in parts}
    for name, numbers in parts.items():
        paths[name].write_text(written(numbers))
    files = {f"{split}_file": str(paths[split]) for split in ("train", "validation", "test")}
    sizes = {"stride": 2, "longest_question": 8} if task == "qa" else {}
    with pytest.raises(UserError) as error:
        make_task(task, **files, **sizes).splits  # noqa: B018
    assert str(error.value).startswith(
        f"task.test_file={paths['test']}: all 6 rows stand in task.train_file={paths['train']} too"
    )
    assert len(make_task(task, **{**files, "test_file": str(paths["other"])}, **sizes).splits.test) == 6
