"""Secrets never reach a text that is kept."""

import pytest

from src.redact import hide_paths, redact, redact_all


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("login 0123456789abcdef0123456789abcdef01234567 ok", "login *** ok"),
        ("key=local-abcdefghij0123456789xyz", "key=***"),
        ("HF hf_AbCdEfGhIjKlMn.", "HF ***."),
        ("+logger.api_key=abc123 seed=1", "+logger.api_key=*** seed=1"),
        ("password: s3cret, next", "password: ***, next"),
        ("https://me:pw@example.org/x", "https://***@example.org/x"),
        ("sha256 " + "a" * 64, "sha256 " + "a" * 64),
        ("local-file tokenizer=fast hf_hub", "local-file tokenizer=fast hf_hub"),
        ("", ""),
    ],
)
def test_shapes(text, expected):
    assert redact(text, environ={}) == expected


def test_values_of_the_environment():
    environ = {
        "WANDB_API_KEY": "hunter2hunter2",
        "MY_TOKEN": "hunter2hunter2-and-more",
        "TOKENIZERS_PARALLELISM": "false",
        "HOME": "/home/somebody",
    }
    text = "hunter2hunter2-and-more hunter2hunter2 false /home/somebody"
    assert redact(text, environ) == "*** *** false /home/somebody"


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("SOME_SECRET", "correct horse battery")
    assert redact_all(["a", "x=correct horse battery"]) == ["a", "x=***"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("task.data_dir=/home/me/glue_data lr=1", "task.data_dir=.../glue_data lr=1"),
        ("/home/me/data/", ".../"),
        (
            "nyu-mll/glue multirun/demo ./x/y https://a.org/b/c",
            "nyu-mll/glue multirun/demo ./x/y https://a.org/b/c",
        ),
    ],
)
def test_paths_are_shortened(text, expected):
    assert hide_paths(text) == expected
