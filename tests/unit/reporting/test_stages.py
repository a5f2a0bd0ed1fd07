import dataclasses
import importlib

import pytest

from keepfrac.errors import UserError
from keepfrac.reporting import stages
from keepfrac.reporting.cells import FinishedRun

EMPTY = dict.fromkeys(field.name for field in dataclasses.fields(FinishedRun))


def cell(method, seed=0, test=0.9, **changes) -> FinishedRun:
    facts = {"task": "gaiic", "best_metric": "one_minus_mlogloss", "keep_asked": 1.0, "steps": 10, "settings": {}}
    scores = {"map": test - 0.1, "scaled_one_minus_mlogloss": test + 0.01}
    return FinishedRun(
        **EMPTY | facts | {"method": method, "seed": seed, "test_score": test, "test_scores": scores} | changes
    )


def rows(cells):
    head, _, *body = [
        [part.strip() for part in line.strip("|").split("|")] for line in stages.table(cells).splitlines()
    ]
    return [dict(zip(head, row, strict=True)) for row in body]


def test_seeds_are_one_line_and_the_best_stands_first():
    cells = [
        cell("nosp", 0, 0.90, params=2_000_000),
        cell("nosp", 1, 0.94, params=2_000_000),
        cell("taylor", test=0.93),
    ]
    first, second = rows(cells)
    assert (first["method"], first["test"], first["n"], first["sd of test"]) == ("taylor", "0.9300", "1", "-")
    assert (second["test"], second["n"], second["sd of test"]) == ("0.9200", "2", "0.0283")
    assert (second["mAP"], second["of it scaled"], second["M parameters"]) == ("0.8200", "0.9300", "2.00")
    assert first["M parameters"] == "-" and "ECE" not in first and "ms at batch 1" not in first


def test_sizes_and_lengths_of_training_are_lines_of_their_own():
    cells = [cell("taylor", keep_asked=0.4), cell("taylor", keep_asked=0.2), cell("taylor", keep_asked=0.2, steps=5)]
    assert len(rows(cells)) == 3


def test_arms_of_other_settings_are_lines_of_their_own_and_the_former_run_is_none():
    common = {"method.score": "w", "model.run": "runs/a"}
    cells = [
        cell("lora", 0, 0.90, lr=1e-3, settings=common),
        cell("lora", 1, 0.92, lr=1e-3, settings=common | {"model.run": "runs/b"}),
        cell("lora", 0, 0.80, lr=1e-4, settings=common),
        cell("lora", 0, 0.70, lr=1e-3, settings=common | {"method.score": "delta"}),
    ]
    found = {row["method"]: (row["test"], row["n"]) for row in rows(cells)}
    assert found == {
        "lora (lr=0.001, method.score=w)": ("0.9100", "2"),
        "lora (lr=0.0001, method.score=w)": ("0.8000", "1"),
        "lora (lr=0.001, method.score=delta)": ("0.7000", "1"),
    }


def test_cells_of_two_tasks_are_refused():
    with pytest.raises(UserError, match="gaiic by one_minus_mlogloss, mrpc by"):
        stages.table([cell("nosp"), cell("nosp", task="mrpc")])


def test_no_finished_cell_is_said():
    with pytest.raises(UserError, match=r"^no finished cell there$"):
        stages.table([])


def test_a_folder_without_runs_is_said(tmp_path, capsys):
    assert stages.main([str(tmp_path)]) == 1
    assert "results.json" in capsys.readouterr().err


def test_the_command_is_found_where_it_always_was():
    assert importlib.import_module("src.baselines.table") is stages
