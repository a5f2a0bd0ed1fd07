"""The report on synthetic sweeps: what it computes, what it refuses, what it writes."""

import csv
import io
import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from rich.console import Console
from scipy import stats

from keepfrac.errors import UserError
from keepfrac.reporting import front, tables, terminal
from keepfrac.reporting.arms import group_of, summarise_cells
from keepfrac.reporting.build import of_records, of_sweep
from keepfrac.reporting.cells import read_sweep, settings_of
from keepfrac.reporting.figure import draw, score_limits, style_of, units_of
from keepfrac.reporting.files import csv_rows, csv_text
from keepfrac.reporting.records import add_records, read_records
from keepfrac.reporting.statistics import accuracy_error, paired, summarise, wilson
from keepfrac.storage import results
from src.report import main

DENSE_BYTES = 100 * 2**20


def cell(method="norm", keep=0.3, lr=2e-5, seed=0, test=0.75, val=0.75, task="rotten_tomatoes", **changes):
    """The content of a results.json as a run leaves it; `changes` replaces parts by their dotted name."""
    keep = 1.0 if method == "nosp" else keep
    content = {
        "status": "done",
        "error": None,
        "identity": f"{method}-{keep}-{lr}-{seed}-{task}-{json.dumps(changes, sort_keys=True)}",
        "config": {
            "name": "demo", "seed": seed, "lr": lr, "epochs": 2, "batch_size": 32, "keep_frac": keep,
            "method": {"_target_": "x.Y", "name": method, "keep_frac": keep, "unit": "column"},
            "model": {"name": "sentence-transformers/all-MiniLM-L6-v2"},
            "task": {"name": task, "rows": 2000, "seed": seed, "data_dir": "/home/me/glue_data"},
            "hardware": {"num_workers": 2},
        },
        "provenance": {
            "git_sha": "a" * 40, "device": "cpu", "precision": "bf16-mixed", "started": "2025-01-02T03:04:05+00:00",
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
            "command": f"python -m src.main method={method} task.data_dir=/home/me/glue_data seed={seed}",
            "data": {"rows": {"train": 2000, "val": 400, "test": 853}},
        },
        "best_metric": "accuracy",
        "direction": "max",
        "scores": {"val/accuracy": val, "test/accuracy": test, "test/loss": 0.5},
        "kept": {"asked": keep, "achieved": keep - 0.001, "unit": "saved activations", "of": "columns", "fallbacks": 0},
        "size": {"params": 22_700_000, "nonzeros": 22_700_000},
        "cost": {
            "saved_bytes": DENSE_BYTES * (0.4 + 0.6 * keep), "saved_bytes_dense": DENSE_BYTES,
            "step_seconds": 0.22, "step_seconds_dense": 0.2, "steps": 126, "probe": "32 x 59 tokens",
        },
    }  # fmt: skip
    if method == "nosp":
        content["kept"] = {"asked": 1.0, "achieved": 1.0, "unit": None}
    for name, value in changes.items():
        *path, leaf = name.split(".")
        part = content
        for key in path:
            part = part[key]
        part[leaf] = value
    return content


def sweep(folder, *contents):
    for number, content in enumerate(contents):
        results.write(folder / f"cell{number:03d}", content)
    return folder


def arms_of(folder, *contents):
    return summarise_cells(read_sweep(sweep(folder, *contents))[0])


def rows_of(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def write_rows(path, *rows):
    with path.open("w", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def small_sweep(folder):
    """Two seeds of the dense baseline and of norm."""
    dense = [cell("nosp", seed=s, test=0.77 + 0.01 * s) for s in (0, 1)]
    return sweep(folder, *dense, *(cell(seed=s, test=0.75 + 0.02 * s) for s in (0, 1)))


class TestStatistics:
    @pytest.mark.parametrize("n", [2, 3, 4])
    @pytest.mark.parametrize("confidence", [0.5, 0.95])
    def test_paired_interval_is_scipys(self, n, confidence):
        ours, dense = [0.71, 0.74, 0.70, 0.78][:n], [0.75, 0.74, 0.76, 0.77][:n]
        expected = stats.ttest_rel(ours, dense).confidence_interval(confidence)
        found = paired(dict(enumerate(ours)), dict(enumerate(dense)), confidence)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
        assert found.n == n

    def test_pairs_are_of_shared_seeds_alone(self):
        found = paired({0: 0.5, 1: 0.6, 7: 0.0}, {0: 0.4, 1: 0.4, 9: 1.0})
        assert (found.n, found.mean) == (2, pytest.approx(0.15))
        assert paired({0: 0.5}, {1: 0.4}) is None
        assert paired({0: 0.5}, {0: 0.4}).low is None

    def test_summary(self):
        sample = summarise([1.0, 2.0, None, float("nan"), 3.0])
        assert (sample.n, sample.mean, sample.sd) == (3, 2.0, 1.0)
        assert sample.se == pytest.approx(3**-0.5)
        assert summarise([4.0]).sd is None
        assert summarise([]).mean is None

    def test_accuracy_error(self):
        assert accuracy_error(0.8, 400) == pytest.approx(0.02)

    @pytest.mark.parametrize(("right", "rows"), [(0, 27), (27, 27), (13, 27), (1, 2000)])
    def test_wilson_is_scipys(self, right, rows):
        low, high = stats.binomtest(right, rows).proportion_ci(method="wilson")
        assert wilson(right / rows, rows) == pytest.approx((low, high))

    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_no_accuracy_is_without_error(self, p):
        low, high = wilson(p, 27)
        assert 2 * 1.96 * accuracy_error(p, 27) == pytest.approx(high - low, rel=1e-4)


MIN = {"direction": "min"}
MARCH = {"provenance.started": "2025-03-01", "config.hardware.num_workers": 0}
EARLY, LATE = ({"provenance.started": f"2025-03-01T{clock}"} for clock in ("09:00:00+02:00", "08:00:00+00:00"))
SPEED = {"config.eval_batch_size": 64, "config.task.eval_batch_size": 64, "config.fidelity_every": 5}
ONE_ARM = {  # cells by their changes; how many count, and their mean score
    "an lr of few seeds cannot win": ([{"val": 0.6}, {"seed": 1, "val": 0.6}, {"lr": 5e-5, "val": 0.99}], 2, 0.75),
    "a loss is better smaller": ([{"val": 0.4, **MIN}, {"lr": 5e-5, "val": 0.3, "test": 2, **MIN}], 1, 2),
    "a repeated seed counts once": ([{"test": 0.1}, {"test": 0.9, **MARCH}], 1, 0.9),
    "of one day the one begun last counts": ([{"test": 0.9, **LATE}, {"test": 0.1, **EARLY}], 1, 0.9),
    "what changes no score splits no arm": ([{}, {"seed": 1, **SPEED}], 2, 0.75),
    "no number is left out": ([{"test": 0.5}, {"seed": 1, "test": float("nan")}], 1, 0.5),
}


class TestArms:
    def test_mean_spread_and_n_over_seeds(self, tmp_path):
        dense, norm = arms_of(
            tmp_path, *(cell(m, seed=s, test=0.7 + s / 100) for m in ("nosp", "norm") for s in (0, 1, 2))
        )
        assert dense.is_dense
        assert (norm.method, norm.seeds, norm.test.n) == ("norm", (0, 1, 2), 3)
        assert (norm.test.mean, norm.test.sd) == (pytest.approx(0.71), pytest.approx(0.01))
        assert norm.saved_ratio.mean == pytest.approx(0.58)
        assert norm.step_ratio.mean == pytest.approx(1.1)
        assert (norm.keep_asked, norm.keep_achieved) == (0.3, pytest.approx(0.299))
        assert (norm.unit, norm.of, dense.unit) == ("saved activations", "columns", None)

    def test_lr_is_chosen_on_validation_for_each_arm(self, tmp_path):
        grid = {("nosp", 2e-5): (0.80, 0.10), ("nosp", 5e-5): (0.70, 0.90),
                ("norm", 2e-5): (0.60, 0.95), ("norm", 5e-5): (0.65, 0.20)}  # fmt: skip
        cells = [cell(m, lr=lr, seed=s, val=v, test=t) for (m, lr), (v, t) in grid.items() for s in (0, 1)]
        dense, norm = arms_of(tmp_path, *cells)
        assert (dense.lr, dense.test.mean, dense.lrs_tried) == (2e-5, pytest.approx(0.10), 2)
        assert (norm.lr, norm.test.mean) == (5e-5, pytest.approx(0.20))
        assert norm.difference.mean == pytest.approx(0.10)

    @pytest.mark.parametrize("name", ONE_ARM)
    def test_cells_of_one_arm(self, tmp_path, name):
        changes, n, mean = ONE_ARM[name]
        (arm,) = arms_of(tmp_path, *(cell(**change) for change in changes))
        assert (arm.test.n, arm.test.mean) == (n, mean)

    def test_without_validation_every_lr_is_shown(self, tmp_path):
        arms = arms_of(tmp_path, cell(lr=2e-5, val=None, test=0.1), cell(lr=5e-5, val=None, test=0.9))
        assert [arm.lr_chosen for arm in arms] == [False, False]

    def test_unequal_settings_are_never_pooled(self, tmp_path):
        arms = arms_of(
            tmp_path, cell("nosp"), cell(), cell(seed=1, **{"config.method.unit": "token"}),
            cell(seed=2, **{"config.batch_size": 64}),
        )  # fmt: skip
        assert [(arm.setup, arm.label, arm.test.n) for arm in arms] == [
            ("batch_size=32", "nosp", 1),
            ("batch_size=32", "norm unit=column", 1),
            ("batch_size=32", "norm unit=token", 1),
            ("batch_size=64", "norm unit=column", 1),
        ]
        assert arms[1].difference is not None
        assert arms[3].difference is None

    def test_copies_of_the_seed_tell_no_two_arms_apart(self):
        one, two = (settings_of({"seed": seed, "method": {"name": "late", "selection_seed": seed}}) for seed in (1, 2))
        fixed = settings_of({"seed": 1, "method": {"name": "late", "selection_seed": 7}})
        assert one == two != fixed

    def test_cells_of_changed_data_are_neither_pooled_nor_compared(self, tmp_path):
        def made(data, **changes):
            return cell(**changes, **{"provenance.fingerprints": {"data": data, "code": data}})

        contents = [made("a" * 16, seed=0), made("b" * 16, seed=1), made("b" * 16, method="nosp", seed=0), cell(seed=2)]
        report = of_sweep(sweep(tmp_path, *contents))
        found = [(arm.setup, arm.method, arm.test.n, arm.difference) for arm in report.arms]
        assert found == [
            ("data=aaaaaaaa", "norm", 1, None),
            ("data=bbbbbbbb", "nosp", 1, None),
            ("data=bbbbbbbb", "norm", 1, None),
            ("data=unknown", "norm", 1, None),
        ]
        data, code = (note for note in report.notes if "versions of" in note)
        assert data.startswith(
            "rotten_tomatoes: made on 3 versions of its data (aaaaaaaa, bbbbbbbb, unknown), which are"
        )
        assert code == (
            f"Made by 3 versions of the code: {'b' * 16} (2), {'a' * 16} (1), a version that kept none (1);"
            " rerun=changed runs the older cells again."
        )

    def test_cells_of_before_the_fingerprints_are_of_the_only_data_that_is_known(self, tmp_path):
        known = {"provenance.fingerprints": {"data": "a" * 16, "code": "c" * 16}}
        report = of_sweep(sweep(tmp_path, cell("nosp", seed=0, **known), cell(seed=0), cell(seed=1, **known)))
        dense, norm = report.arms
        assert (dense.setup, norm.setup, norm.test.n, norm.difference.n) == ("", "", 2, 1)

    def test_an_option_that_is_off_splits_no_arm_from_cells_before_it(self, tmp_path):
        later = cell(seed=1)
        later["config"] |= {"ema": None, "augment": {"name": "none"}, "distill": {"name": "x", "teacher": None}}
        later["config"]["method"]["floor"] = False
        (arm,) = arms_of(tmp_path, cell(), later)
        assert arm.test.n == 2
        later["config"]["ema"] = 0.99
        assert len(arms_of(tmp_path, cell(), later)) == 2

    def test_loop_options_and_teachers_are_arms_of_one_table(self, tmp_path):
        options = ({"ema": 0.99}, {"augment": {"name": "x", "times": 2}}, {"distill": {"name": "x", "teacher": "t"}})
        contents = [cell() for _ in options]
        for content, option in zip(contents, options, strict=True):
            content["identity"] = str(option)
            content["config"] |= option
        arms = arms_of(tmp_path, cell(), *contents)
        assert len(arms) == 4 and len({group_of(arm) for arm in arms}) == 1
        assert {arm.variant for arm in arms} >= {"ema=0.99"}

    def test_seeds_that_go_on_from_runs_of_their_own_seed_are_one_arm(self, tmp_path):
        runs = [f"multirun/a/nosp_k1_lr0.0003_s{seed}_gaiic_m-{seed}0abcdef" for seed in (0, 1)]
        own = [cell(seed=seed, **{"config.model": {"name": "m", "run": run}}) for seed, run in enumerate(runs)]
        (arm,) = arms_of(tmp_path, *own)
        assert arm.test.n == 2
        other = cell(seed=2, **{"config.model": {"name": "m", "run": "multirun/a/l0_k0.4_s2_gaiic_m-20abcdef"}})
        assert len(arms_of(tmp_path, *own, other)) == 2


class TestPage:
    def test_fallbacks_are_told(self, tmp_path):
        assert "3 sites fell back to dense" in of_sweep(sweep(tmp_path, cell(**{"kept.fallbacks": 3}))).table()

    def test_pinned_linears_are_told(self, tmp_path):
        table = of_sweep(sweep(tmp_path, cell(**{"kept.pinned": 6}), cell("rand"))).table()
        assert "norm at 0.3 (rotten_tomatoes, all-MiniLM-L6-v2): 6 linears stay dense: attention saves" in table
        assert table.count("stay dense") == 1

    def test_failed_and_unfinished_cells_are_listed_without_secrets(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_API_KEY", "hunter2hunter2")
        failed = cell(status="failed", error="boom | hunter2hunter2\nsecond <b>line")
        sweep(tmp_path, failed, cell("nosp"))
        (tmp_path / "begun").mkdir()
        (tmp_path / "begun" / "run.log").touch()
        (tmp_path / "torn").mkdir()
        (tmp_path / "torn" / "results.json").write_text("{", encoding="utf-8")
        page = of_sweep(tmp_path).markdown(None)
        assert "Cells without a result: 3" in page
        assert "| cell000 | failed | boom \\| *** second &lt;b>line |" in page
        assert "| begun | unfinished |" in page
        assert "| torn | unreadable |" in page

    def test_a_broken_result_does_not_break_the_report(self, tmp_path):
        broken = cell()
        del broken["best_metric"]
        report = of_sweep(sweep(tmp_path, cell("nosp"), broken))
        assert [problem.status for problem in report.problems] == ["unreadable"]


class TestPicture:
    def test_is_drawn_and_linked(self, tmp_path):
        small_sweep(tmp_path)
        assert main([str(tmp_path), "--no-page"]) == 0
        assert {"report.md", "report.csv", "report.png"} <= {path.name for path in tmp_path.iterdir()}
        assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
        assert "(report.png)" in (tmp_path / "report.md").read_text(encoding="utf-8")

    def test_unlike_units_have_their_own_panel(self, tmp_path):
        other = cell("l0", **{"kept.unit": "parameters"})
        report = of_sweep(sweep(tmp_path, cell("nosp"), cell(), other))
        assert units_of(report.arms) == ["parameters", "saved activations"]
        assert "never share an axis" in report.table()
        draw(report.arms, tmp_path / "report.png")

    @pytest.mark.parametrize("only", [cell(cost=None, kept=None, size=None), cell("nosp")])
    def test_without_costs_or_baseline_and_of_the_baseline_alone(self, tmp_path, only):
        assert draw(arms_of(tmp_path, only), tmp_path / "report.png").read_bytes()

    def test_the_axis_of_scores_spans_several_errors_of_the_test_set(self, tmp_path):
        arms = arms_of(tmp_path, cell("nosp", test=0.80), cell(test=0.799))
        low, high = score_limits(arms)
        assert low < 0.80 - 3 * accuracy_error(0.8, 853) and high > 0.80 + 3 * accuracy_error(0.8, 853)

    def test_one_arm_far_off_does_not_set_the_axis(self, tmp_path):
        methods = ("rand", "norm", "bkrz", "late", "wta")
        near = [cell(method, test=0.79 + place / 1000) for place, method in enumerate(methods)]
        low, high = score_limits(arms_of(tmp_path, cell("nosp", test=0.80), *near, cell("l0", test=0.1)))
        assert 0.5 < low < 0.75 and high < 0.9

    def test_what_is_beyond_an_axis_is_at_its_end_with_its_value(self, tmp_path):
        methods = ("rand", "norm", "bkrz", "late", "wta")
        near = [cell(method, test=0.79 + place / 1000) for place, method in enumerate(methods)]
        far = cell("l0", test=0.1, **{"cost.saved_bytes": 5 * DENSE_BYTES})
        draw(arms_of(tmp_path, cell("nosp", test=0.80), *near, far), tmp_path / "report.svg")
        front.draw(arms_of(tmp_path, cell("nosp", test=0.80), *near, far), tmp_path / "front.svg")
        assert "(at 5, 0.1)" in (tmp_path / "report.svg").read_text()
        assert "l0 0.3 (at 5, -70)" in (tmp_path / "front.svg").read_text()

    def test_names_of_points_in_one_place_do_not_cover_one_another(self):
        axis = Figure().subplots()
        axis.set(xlim=(0, 1), ylim=(0, 1))
        front._write_names(axis, [(0.5, 0.5)] * 6, [f"method {i}" for i in range(6)])
        boxes = [text.get_window_extent() for text in axis.texts]
        assert len(boxes) == 6 and not any(one.overlaps(two) for one, two in combinations(boxes, 2))

    def test_without_a_known_noise_a_tiny_difference_looks_tiny(self, tmp_path):
        scores = [
            {"best_metric": "mcc", "scores": {"val/mcc": 0.5, "test/mcc": 0.5 + step / 10_000}} for step in (0, 1)
        ]
        arms = arms_of(tmp_path, cell("nosp", **scores[0]), cell(**scores[1]))
        axis = Figure().subplots()
        front._scores(axis, arms[1:], style_of(arms), None)
        low, high = axis.get_ylim()
        assert high - low > 100 * 0.01  # in points, of which the difference is a hundredth

    def test_a_method_has_one_colour_and_no_other_method_has_it(self, tmp_path):
        pair = [cell("norm", **{"config.method.unit": unit}) for unit in ("column", "token")]
        styles = style_of(arms_of(tmp_path, cell("nosp"), *pair, *map(cell, ("rand", "bkrz", "late", "wta", "l0"))))
        norm = [style for label, style in styles.items() if label.startswith("norm")]
        assert norm[0]["color"] == norm[1]["color"] and norm[0]["marker"] != norm[1]["marker"]
        assert len({style["color"] for style in styles.values()}) == len(styles) - 1

    def test_what_was_gained_is_one_picture_and_the_same_each_time(self, tmp_path):
        small_sweep(tmp_path / "demo")
        options = [str(tmp_path / "demo"), "--no-picture", "--no-page", "--front"]
        pictures = [tmp_path / "one.svg", tmp_path / "two.svg"]
        assert [main([*options, str(path)]) for path in pictures] == [0, 0]
        one, two = (path.read_bytes() for path in pictures)
        assert one == two and b"<svg" in one and len(one) < 100_000

    def test_without_a_baseline_nothing_was_gained(self, tmp_path, capsys):
        sweep(tmp_path / "demo", cell())
        assert main([str(tmp_path / "demo"), "--no-picture", "--no-page", "--front", str(tmp_path / "x.svg")]) == 1
        assert "difference to dense" in capsys.readouterr().err


class TestTerminal:
    def printed(self, *contents, folder, width=100):
        report = of_sweep(sweep(folder, *contents))
        console = Console(width=width, file=io.StringIO())
        terminal.show(console, report.arms, report.notes, report.problems)
        return console.file.getvalue()

    def test_a_sentence_says_what_was_gained(self, tmp_path):
        late = cell("late", test=0.746, **{"cost.saved_bytes": 0.17 * DENSE_BYTES, "cost.step_seconds": 0.12})
        text = self.printed(cell("nosp", test=0.75), cell("bkrz", test=0.75), late, folder=tmp_path)
        sentence = (
            "late at 0.3: 0.17 of dense's saved bytes and 0.60 of its step time, -0.4 [-3.4, +2.6] points: "
            "not distinguishable at n=1."
        )
        assert " ".join(text.split()).startswith(f"rotten_tomatoes, all-MiniLM-L6-v2 {sentence}")

    def test_a_loss_beyond_noise_is_said(self, tmp_path):
        seeds = [cell(m, seed=s, test=t + s / 1000) for m, t in (("nosp", 0.8), ("norm", 0.7)) for s in (0, 1, 2)]
        for content in seeds:
            content["cost"]["step_seconds"] = 0.18
        assert "points: worse at n=3." in " ".join(self.printed(*seeds, folder=tmp_path).split())

    def test_nothing_gained_is_said(self, tmp_path):
        dear = cell("checkpoint", **{"cost.step_seconds": 0.4})
        assert "Nothing was gained" in self.printed(cell("nosp"), dear, folder=tmp_path)

    def test_without_a_baseline_what_was_gained_is_not_known(self, tmp_path):
        assert "it takes a dense baseline" in self.printed(cell(), folder=tmp_path)

    def test_fits_a_hundred_characters_in_eight_columns(self, tmp_path):
        pruned = cell("l0", **{"size.params": 16_000_000, "config.method.controller": {"integral": 0.02, "limit": 10}})
        arms = arms_of(tmp_path / "arms", cell("nosp"), cell(), pruned)
        assert [len(row) for row in terminal.lines(arms)] == [8, 8, 8]
        plain = cell("l0", **{"size.params": 16_000_000})
        text = self.printed(cell("nosp"), cell(), pruned, plain, folder=tmp_path / "shown")
        assert max(map(len, text.splitlines())) <= 100
        assert "l0 (a)" in text and "- (a): controller.integral=0.02 controller.limit=10" in text

    def test_of_unlike_metrics_the_smaller_is_better(self, tmp_path):
        loss = {"direction": "min", "best_metric": "loss", "scores": {"val/loss": 2.0, "test/loss": 2.0}}
        other = loss | {"scores": {"val/loss": 1.5, "test/loss": 1.5}}
        seeds = [cell(m, seed=s, **c) for m, c in (("nosp", loss), ("norm", other)) for s in (0, 1)]
        _, norm = terminal.lines(arms_of(tmp_path, *seeds))
        assert norm["verdict"] == "better" and norm["to dense"].startswith("-0.5000")


class TestOddResults:
    @pytest.mark.parametrize(
        "odd",
        [
            {"identity": ["a"]}, {"size.params": "many"}, {"provenance.git_sha": 12}, {"provenance": [1]},
            {"config": "text"}, {"config.seed": float("inf")}, {"scores": {"test/accuracy": "high"}},
            {"scores": {"test/accuracy": 0.5, "test/f1": [1]}}, {"kept.unit": {"a": 1}}, {"best_metric": None},
            {"config.distill": {}},
        ],
        ids=str,
    )  # fmt: skip
    def test_one_is_named_and_left_out(self, tmp_path, odd, capsys):
        sweep(tmp_path, cell("nosp"), cell(), cell("rand") | {"identity": "x"})
        path = tmp_path / "cell002" / "results.json"
        content = cell("rand", **odd) if "config" not in odd else cell("rand") | odd
        results.write(path.parent, content)
        assert main([str(tmp_path), "--no-picture"]) == 0
        assert "cell002" in capsys.readouterr().out
        report = of_sweep(tmp_path)
        assert [problem.cell for problem in report.problems] == ["cell002"]
        assert [arm.method for arm in report.arms] == ["nosp", "norm"]

    def test_a_row_of_the_records_is_named_and_left_out_but_never_lost(self, tmp_path, capsys):
        path = tmp_path / "demo.csv"
        cells, _ = read_sweep(small_sweep(tmp_path / "demo"))
        add_records(cells, path)
        first, *rest = rows_of(path)
        write_rows(path, first | {"seed": "inf"}, *rest)
        assert main(["--records", str(path), "--no-picture"]) == 0
        assert "line 2" in capsys.readouterr().out
        assert sum(arm.test.n for arm in of_records(path).arms) == 3
        with pytest.raises(UserError, match="line 2"):
            add_records(cells, path)

    def test_no_cell_of_a_csv_is_a_formula(self, tmp_path):
        odd = cell("=cmd()", **{"kept.of": "@x", "kept.unit": "-2+cmd()", "config.model.name": "'+x"})
        cells, _ = read_sweep(sweep(tmp_path / "demo", odd))
        add_records(cells, tmp_path / "demo.csv")
        of_records(tmp_path / "demo.csv").write(tmp_path)
        for name in ("demo.csv", "report.csv"):
            (row,) = rows_of(tmp_path / name)
            assert row["method"] == "'=cmd()" and row["model"] == "''+x"
            assert not any(text.startswith(("=", "+", "-", "@")) for text in row.values())
        assert read_records(tmp_path / "demo.csv") == cells

    def test_numbers_are_no_formulas(self):
        text = csv_text(["a", "b", "c"], [{"a": -0.5, "b": "-1e-3", "c": "-"}])
        assert text.splitlines()[1] == "-0.5,-1e-3,'-"
        assert csv_rows(text)[1] == [{"a": "-0.5", "b": "-1e-3", "c": "-"}]


class TestFewRows:
    def notes(self, tmp_path, p):
        rows = {"provenance.data": {"rows": {"train": 200, "val": 27, "test": 27}}}
        arms = arms_of(tmp_path, cell("nosp", test=p, **rows), cell(test=p, **rows))
        return arms, " ".join(tables.notes(arms, []))

    def test_an_accuracy_of_one_has_an_interval_and_no_standard_error(self, tmp_path):
        arms, said = self.notes(tmp_path, 1.0)
        assert "one test set of 27 rows; at p = 1.0000 Wilson's 95 % interval, which seeds" in said
        assert "[0.8754, 1.0000]" in said and "sqrt(p" not in said
        assert terminal.verdict(arms[1], tables.standard_error(arms)) == "within noise"
        low, high = score_limits(arms)
        assert high - low > 0.1
        draw(arms, tmp_path / "report.png")

    def test_few_test_rows_are_said(self, tmp_path):
        assert "27 test rows are few: one is 3.7 % of them" in self.notes(tmp_path, 0.7)[1]
        assert "few" not in " ".join(tables.notes(arms_of(tmp_path / "many", cell("nosp")), []))


class TestRecords:
    def test_are_idempotent_and_replace_by_identity(self, tmp_path):
        path = tmp_path / "records" / "demo.csv"
        cells, _ = read_sweep(small_sweep(tmp_path / "demo"))
        assert add_records(cells, path) == (4, 0)
        text = path.read_text(encoding="utf-8")
        assert add_records(cells, path) == (0, 4)
        assert path.read_text(encoding="utf-8") == text
        more, _ = read_sweep(sweep(tmp_path / "more", cell(seed=5)))
        assert add_records(more, path) == (1, 0)
        assert len(read_records(path)) == 5

    def test_come_back_as_they_were(self, tmp_path):
        path = tmp_path / "demo.csv"
        cells, _ = read_sweep(small_sweep(tmp_path / "demo"))
        add_records(cells, path)
        assert read_records(path) == cells
        assert of_records(path).table() == of_sweep(tmp_path / "demo").table()

    def test_of_an_older_version_are_read(self, tmp_path):
        path = tmp_path / "demo.csv"
        cells, _ = read_sweep(sweep(tmp_path / "demo", cell(**{"cost.latency_seconds": 0.01})))
        add_records(cells, path)
        assert read_records(path)[0].latency_seconds == 0.01
        (row,) = rows_of(path)
        for name in ("latency_seconds", "latency_seconds_dense", "pinned"):
            del row[name]
        row["settings"] = json.dumps(json.loads(row["settings"]) | {"eval_batch_size": 64})
        write_rows(path, row)
        (old,) = read_records(path)
        assert (old.latency_seconds, old.pinned, old.settings) == (None, None, cells[0].settings)

    def test_hold_no_path_of_the_machine(self, tmp_path):
        cells, _ = read_sweep(small_sweep(tmp_path / "demo"))
        add_records(cells, tmp_path / "demo.csv")
        text = (tmp_path / "demo.csv").read_text(encoding="utf-8")
        assert "/home/me" not in text
        assert "task.data_dir=.../glue_data" in text

    @pytest.mark.parametrize("content", ["", "a,b\n1,2\n"])
    def test_another_file_is_refused(self, tmp_path, content):
        (tmp_path / "x.csv").write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match="not a records file"):
            read_records(tmp_path / "x.csv")

    def test_a_bad_value_is_named_with_its_line(self, tmp_path):
        path = tmp_path / "demo.csv"
        add_records(read_sweep(small_sweep(tmp_path / "demo"))[0], path)
        path.write_text(path.read_text(encoding="utf-8").replace("0.77", "high"), encoding="utf-8")
        with pytest.raises(UserError, match=r"line 2.*high"):
            read_records(path)


class TestCommand:
    def test_report_record_and_readme(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv("KEEPFRAC_MULTIRUN", str(tmp_path))
        small_sweep(tmp_path / "demo")
        assert main([str(tmp_path / "demo"), "--record"]) == 0
        assert "recorded 4 new cells and replaced 0" in capsys.readouterr().out
        readme = tmp_path / "README.md"
        readme.write_text("a\n<!-- table:demo -->\nold\n<!-- /table:demo -->\nb\n", encoding="utf-8")
        command = ["--records", str(tmp_path / "records" / "demo.csv"), "--readme", str(readme), "--no-picture"]
        assert main(command) == 0
        text = readme.read_text(encoding="utf-8")
        assert text.startswith("a\n<!-- table:demo -->\n**rotten_tomatoes, all-MiniLM-L6-v2**")
        assert text.endswith("<!-- /table:demo -->\nb\n")
        assert "old" not in text
        assert main(command) == 0
        assert readme.read_text(encoding="utf-8") == text
        assert "nothing new for" in capsys.readouterr().out
        assert (tmp_path / "records" / "demo" / "report.md").exists()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["nowhere"], "is not a folder"),
            (["."], "holds no results.json"),
            ([], "Give one of FOLDER"),
            (["--records", "none.csv"], "Cannot read none.csv"),
            (["x", "--readme", "y"], "--readme takes its table from records"),
            (["--records", "x", "--record", "y"], "--record reads a sweep's FOLDER"),
            (["demo", "--record", "../up"], "a name has letters"),
        ],
    )
    def test_mistakes_are_one_line(self, tmp_path, monkeypatch, capsys, options, words):
        monkeypatch.chdir(tmp_path)
        if "demo" in options:
            small_sweep(tmp_path / "demo")
        assert main(options) == 1
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1

    def test_readme_without_markers(self, tmp_path, monkeypatch, capsys):
        add_records(read_sweep(small_sweep(tmp_path / "demo"))[0], tmp_path / "demo.csv")
        (tmp_path / "README.md").write_text("no place", encoding="utf-8")
        options = ["--records", str(tmp_path / "demo.csv"), "--readme", str(tmp_path / "README.md"), "--no-picture"]
        assert main(options) == 1
        assert "<!-- table:demo -->" in capsys.readouterr().err

    def test_a_reader_who_leaves_early_loses_no_file(self, tmp_path):
        small_sweep(tmp_path)
        command = f"{sys.executable} -m src.report {tmp_path} --no-picture | true"
        root = Path(__file__).parents[3]
        ended = subprocess.run(["bash", "-c", command], cwd=root, capture_output=True, text=True, check=False)
        assert ended.stderr == ""
        assert (tmp_path / "report.md").exists()


def test_hindsight_and_parameters_stand_beside_where_they_mean_something(tmp_path):
    rates = [cell("nosp", lr=1e-5, val=0.7, test=0.9), cell("nosp", lr=2e-5, val=0.8, test=0.6)]
    cut = cell("l0", test=0.5) | {"size": {"params": 16_000_000, "nonzeros": 16_000_000}}
    arms = arms_of(tmp_path / "one", *rates, cut)
    pruned, dense = sorted(tables.lines(arms), key=lambda row: row["method"])
    assert dense["test accuracy"] == "0.6000" and dense["[best on test]"] == "[0.9000, of 2]"
    assert pruned["[best on test]"] == "-" and pruned["params"] == "16.00 M" and dense["params"] == "22.70 M"
    assert any("flatters" in note for note in tables.notes(arms, []))
    plain = tables.lines(arms_of(tmp_path / "two", cell("nosp"), cell("norm")))
    assert not {"params", "training", "[best on test]"} & set(plain[0])
