"""The lines that end a run: scores, what was kept, what it cost, and what to type next."""

import json

import pytest

from keepfrac.run import summary

RECORD = {
    "scores": {"val/accuracy": 0.75, "test/accuracy": 0.5},
    "kept": {"asked": 0.3, "achieved": 0.29871, "of": "weights of the encoder's linears"},
    "cost": {
        "saved_bytes": 2**20,
        "saved_bytes_dense": 2**21,
        "step_seconds": 0.005,
        "step_seconds_dense": 0.01,
        "latency_seconds": None,
    },
}


def test_a_run_says_its_result_in_four_lines(tmp_path):
    scores, kept, cost, more = summary.lines(RECORD, tmp_path / "sweep" / "cell")
    assert scores == "val: acc = 0.7500; test: acc = 0.5000"
    assert kept == "kept: 0.2987 of weights of the encoder's linears (asked: 0.3)"
    assert cost == "cost: 1 MiB saved for backward (dense: 2), 5 ms a step (dense: 10)"
    assert f"python -m src.report {tmp_path}/sweep;" in more


def test_dense_keeps_everything_and_late_part_of_what_it_saves(tmp_path):
    dense = {"asked": 1.0, "achieved": 1.0, "of": "everything"}
    assert summary.lines(RECORD | {"kept": dense}, tmp_path)[1] == "kept: everything"
    late = dense | {"backward_asked": 0.3, "backward_achieved": None, "backward_of": "real tokens"}
    assert "not measured of real tokens (asked: 0.3)" in summary.lines(RECORD | {"kept": late}, tmp_path)[1]


def test_a_run_that_measured_nothing_names_no_cost(tmp_path):
    assert not [line for line in summary.lines(RECORD | {"cost": {"steps": 5}}, tmp_path) if line.startswith("cost")]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, 'AutoModelForSequenceClassification.from_pretrained("'),
        ({"architectures": ["GPT2LMHeadModel"]}, 'AutoModelForCausalLM.from_pretrained("'),
        ({"architectures": ["PrunedBertForMaskedLM"], "auto_map": {}}, "trust_remote_code=True)"),
    ],
)
def test_it_says_how_the_model_is_loaded(tmp_path, config, told):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert told in summary.how_to_load(tmp_path)
