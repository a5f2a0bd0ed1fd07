"""Secrets never reach a text that is kept."""

import pytest
import yaml

from keepfrac.storage.redact import hide_paths, redact, redact_all, redact_tree, redact_yaml


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
        ("password='hunter22' x", "password='***' x"),
        ('api_key="abcd1234"', 'api_key="***"'),
        ('{"api_key": "sekret99", "a": 1}', '{"api_key": "***", "a": 1}'),
        ('{\\"token\\": \\"sek ret\\"}', '{\\"token\\": \\"***\\"}'),
        ("token=abc12345 logger.token=a HF_TOKEN=b", "token=*** logger.token=*** HF_TOKEN=***"),
        (
            "run --password hunter2 --token abc --hf-token='a b' -v",
            "run --password *** --token *** --hf-token='***' -v",
        ),
        ("Authorization: Bearer xyz.abc-1", "Authorization: Bearer ***"),
        ("{'Authorization': 'Basic eHl6'}", "{'Authorization': 'Basic ***'}"),
        ("sent Bearer abcdefgh1234", "sent Bearer ***"),
        ("sk-abcdefghij0123456789 task-abcdefghij0123456789", "*** task-abcdefghij0123456789"),
        (
            "tokenizer=a max_tokens=5 pad_token=[PAD] keep_frac=0.1",
            "tokenizer=a max_tokens=5 pad_token=[PAD] keep_frac=0.1",
        ),
        ("x=hf_AbCdEfGh1234567 run_hf_AbCdEfGh1234567 hf_transfer", "x=*** run_*** hf_transfer"),
        ("ghp_0123456789abcdefABCDEF0123456789abcd github_pat_0123456789abcdef0123", "*** ***"),
        ("k_AKIAIOSFODNN7EXAMPLE glpat-0123456789abcdefghij", "k_*** ***"),
        (
            "DB_PASSWORD=x MY_TOKEN=y credential=z passphrase: w",
            "DB_PASSWORD=*** MY_TOKEN=*** credential=*** passphrase: ***",
        ),
        ("method=rand_token: no such option", "method=rand_token: no such option"),
        ("unit=token: none --max-token 5 --token --x", "unit=token: none --max-token 5 --token --x"),
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


def test_a_short_secret_is_masked_as_a_word_by_itself():
    environ = {"DB_PASSWORD": "hunt7", "MY_CREDENTIAL": "abcde", "A_KEY": "word"}
    text = "x=hunt7: hunt7 /srv/hunt7/x hunt77 abcde word"
    assert redact(text, environ) == "x=***: *** /srv/hunt7/x hunt77 *** word"


def test_where_a_key_lies_is_no_secret(tmp_path):
    assert redact(f"done: {tmp_path}/x", {"SSH_KEY_FOLDER": str(tmp_path)}) == f"done: {tmp_path}/x"


def test_a_yaml_file_loses_its_secrets_alone(tmp_path):
    path = tmp_path / "multirun.yaml"
    path.write_text("b: ['x.password=abc', 'lr=1', 'y=${oc.env:A}']\na: {api_key: k, n: 5.0e-05}\n")
    redact_yaml(path)
    assert yaml.safe_load(path.read_text()) == {
        "b": ["x.password=***", "lr=1", "y=${oc.env:A}"],
        "a": {"api_key": "***", "n": 5.0e-05},
    }


def test_the_process_environment_is_the_default(monkeypatch):
    monkeypatch.setenv("SOME_SECRET", "correct horse battery")
    assert redact_all(["a", "x=correct horse battery"]) == ["a", "x=***"]


def test_an_option_of_an_argv_hides_what_follows():
    assert redact_all(["--api-key", "abcd", "--token", "-v", "a"]) == ["--api-key", "***", "--token", "-v", "a"]


def test_a_tree():
    tree = {"a": ["token=abc", {"api_key": "hunter2", "unit": "token", "n": 3}], "token": None, "password": ""}
    clean = {"a": ["token=***", {"api_key": "***", "unit": "token", "n": 3}], "token": None, "password": ""}
    assert redact_tree(tree) == clean
    assert redact_tree(clean) == clean


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("task.data_dir=/home/me/glue_data lr=1", "task.data_dir=.../glue_data lr=1"),
        ("/home/me/data/", ".../"),
        ("nyu-mll/glue multirun/demo ./x/y https://a.org/b/c", "nyu-mll/glue multirun/demo ./x/y https://a.org/b/c"),
    ],
)
def test_paths_are_shortened(text, expected):
    assert hide_paths(text) == expected
