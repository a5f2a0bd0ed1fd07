"""The plan of a sweep, its estimates, and what it shows."""

import io
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from keepfrac.storage import results
from keepfrac.sweep import planning, terminal
from keepfrac.sweep.planning import Failure, Job, Missing, Plan, Running, Status

KIND = ("minilm", "sst2")


def job(identity: str, *overrides: str) -> Job:
    return Job(overrides, identity, Path("multirun/x") / identity, f"cell {identity}", KIND)


def text_of(renderable) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def finish(job: Job, **made_by: str) -> None:
    made = {"fingerprints": made_by} if made_by else {}
    results.write(job.folder, {"status": "done", "identity": job.identity, "provenance": made})


def test_plan_sorts_cells_and_runs_equal_ones_once(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    finish(job("b"))
    cells = [job("a", "keep=1"), job("b"), job("a", "keep=2"), Missing(("task=x",), "no x"), job("c")]
    plan = planning.make_plan(cells)
    assert plan == Plan((job("a", "keep=1"), job("c")), (job("b"),), (Missing(("task=x",), "no x"),), 1)


@pytest.mark.parametrize(("asked", "done", "stale"), [(None, "old same unknown", 1), ("now", "same", 0)])
def test_cells_of_other_code_are_told_or_run_again(tmp_path, monkeypatch, asked, done, stale) -> None:
    monkeypatch.chdir(tmp_path)
    cells = [replace(job(name), code="now", code_asked=asked) for name in ("old", "same", "unknown")]
    for cell, made_by in zip(cells, ({"code": "then"}, {"code": "now"}, {}), strict=True):
        finish(cell, **made_by)
    plan = planning.make_plan(cells)
    assert ([cell.identity for cell in plan.done], plan.stale) == (done.split(), stale)
    said = [line for line in planning.describe_plan(plan, "x", 1, 1, "") if "other code" in line]
    assert said == ["made by other code than today's: 1 of those done; rerun=changed runs them again"] * stale


def test_description_says_each_reason_once() -> None:
    missing = tuple(Missing((), reason) for reason in ("no x", "no y", "no x"))
    lines = planning.describe_plan(Plan((job("a"),), (job("b"),), missing, 2), "glue", 2, 1, "3 min")
    assert lines == [
        "sweep glue: 2 cells, 1 done, 1 to run (2 at a time, 1 thread each)",
        "same as another cell, run once: 2 of the combinations",
        "skipped, no data: 2 of the combinations: no x",
        "skipped, no data: 1 of the combinations: no y",
        "expected: 3 min",
    ]
    assert len(planning.describe_plan(Plan((), (job("a"),), (), 0), "glue", 1, 2, "0 s")) == 1
    assert "DATA_DIR=" in planning.nothing_to_run(Plan((), (), missing, 0))


@pytest.mark.parametrize(("cores", "jobs", "threads"), [(2, 1, 2), (2, 2, 1), (16, 3, 5), (2, 5, 1)])
def test_threads_are_divided(cores: int, jobs: int, threads: int) -> None:
    assert planning.threads_per_job(cores, jobs) == threads


def finished(seconds, model="minilm", task="sst2") -> dict:
    return {"config": {"model": {"name": model}, "task": {"name": task}}, "provenance": {"seconds": seconds}}


def test_known_seconds_tolerates_results_without_them() -> None:
    known = planning.known_seconds([finished(10), finished(20), finished(7, task="mrpc"), finished(None), {}])
    assert known == {KIND: [10.0, 20.0], ("minilm", "mrpc"): [7.0]}


@pytest.mark.parametrize(
    "odd",
    [{}, {"config": {"model": "text", "task": [1]}, "provenance": {"seconds": "long"}}, {"cost": {"saved_bytes": "1"}}],
    ids=str,
)
def test_an_odd_result_ends_neither_plan_nor_table(tmp_path, odd) -> None:
    cost = {"saved_bytes_dense": 2, "step_seconds": 1, "step_seconds_dense": "x"}
    results.write(tmp_path / "odd", {"status": "done"} | odd | {"cost": cost | odd.get("cost", {})})
    results.write(tmp_path / "none", {"identity": "a"})
    found = [each for _, each in results.finished(tmp_path)]
    assert len(found) == 1 and planning.known_seconds(found) == {}
    assert "None" in text_of(terminal.score_table(found))


def test_expectation_is_the_mean_of_the_like_else_of_all() -> None:
    known = {KIND: [10.0, 20.0], ("minilm", "mrpc"): [6.0]}
    assert planning.expected_seconds(KIND, known) == 15
    assert planning.expected_seconds(("bert", "sst2"), known) == 12
    assert planning.expected_seconds(KIND, {}) is None


def running(seconds: float, step: int | None = None, steps: int | None = None) -> Running:
    return Running("cell r", KIND, seconds, {"step": step, "steps": steps} if steps else {})


@pytest.mark.parametrize(
    ("num_waiting", "jobs", "num_at_once", "expected"),
    [
        (4, [], 2, 20),  # 4 x 10 s, two at a time
        (0, [running(20, step=50, steps=100)], 1, 20),  # judged by its own steps
        (0, [running(4, step=1, steps=100)], 1, 6),  # too early for that
        (0, [running(30)], 1, 0),  # late, never negative
        (0, [running(10, 10, 100), running(99, 99, 100)], 2, 90),  # the longest job bounds the rest
        (0, [], 1, 0),
    ],
)
def test_time_left(num_waiting: int, jobs: list, num_at_once: int, expected: float) -> None:
    assert planning.seconds_left([KIND] * num_waiting, jobs, {KIND: [10.0]}, num_at_once) == pytest.approx(expected)


def test_time_left_is_unknown_before_anything_ended() -> None:
    assert planning.seconds_left([KIND], [running(3, 50, 100)], {}, 1) is None
    assert planning.seconds_left([], [running(3, 50, 100)], {}, 1) == pytest.approx(3)


@pytest.mark.parametrize(("seconds", "said"), [(None, "unknown"), (3.4, "3 s"), (600, "10 min"), (36000, "10.0 hours")])
def test_durations(seconds: float | None, said: str) -> None:
    assert planning.duration(seconds) == said


def test_stated_time_is_read_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "demo.yaml"
    assert planning.stated_time(path) is None
    path.write_text("# @package _global_\n# Time: about 10 minutes: or so\nname: demo\n")
    assert planning.stated_time(path) == "about 10 minutes: or so"


def test_progress_is_that_of_this_attempt(tmp_path: Path) -> None:
    assert planning.read_progress(tmp_path, since=0) == {}
    (tmp_path / "progress.json").write_text('{"step": 3}')
    assert planning.read_progress(tmp_path, since=0) == {"step": 3}
    assert planning.read_progress(tmp_path, since=time.time() + 60) == {}
    for torn in ('{"step": ', "[1]"):
        (tmp_path / "progress.json").write_text(torn)
        assert planning.read_progress(tmp_path, since=0) == {}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (0, "ended without a finished results.json"),
        (3, "exit code 3"),
        (-9, "killed by SIGKILL (out of memory?)"),
        (-15, "killed by SIGTERM"),
        (-63, "killed by signal 63"),
    ],
)
def test_ends_in_words(code: int, said: str) -> None:
    assert planning.ended_by(code) == said


def test_log_tail_is_short_of_this_attempt_and_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    log = tmp_path / "run.log"
    assert planning.log_tail(log) == ""
    former = b"of a former attempt\n"
    lines = [f"line {number}" for number in range(1000)] + ["1%\r99%", "a-very-secret-key \xff", ""]
    log.write_bytes(former + "\n".join(lines).encode("latin-1"))
    tail = planning.log_tail(log, len(former))
    assert tail.splitlines() == ["line 996", "line 997", "line 998", "line 999", "99%", "*** �"]
    assert planning.log_tail(log, log.stat().st_size) == ""


def test_live_view_shows_running_jobs_and_the_whole() -> None:
    jobs = (
        Running("cell a", KIND, 65.0, {"step": 5, "steps": 50, "score": 0.51234, "phase": "train"}),
        Running("cell b", KIND, 2.0, {}),
    )
    text = text_of(terminal.live_view(Status(3, 1, 4, 1, jobs, 300.0)))
    assert [part in text for part in ("cell a", "5/50", "0.5123", "train", "65 s", "cell b")] == [True] * 6
    assert "3 of 10 done, 2 running, 1 failed, 4 left (1 run by another process), time left: 5 min" in text


def test_failure_table_shows_markup_as_it_is() -> None:
    failures = [Failure("cell a", "exit code 1: [red]x[/nored]", Path("a/run.log"), "[/bold] last line")]
    text = text_of(terminal.failure_table([*failures, Failure("cell b", "killed", Path("b/run.log"), "")]))
    for part in ("cell a", "[red]x[/nored]", "[/bold] last line", "a/run.log", "(it wrote nothing)"):
        assert part in text


def test_a_part_of_an_experiment_takes_its_part_of_the_time() -> None:
    stated = "about 35 minutes on 2 cores (21 cells)"
    assert planning.narrowed("experiment=x", stated, 3, 21).startswith(
        "about 5 min for 3 of its 21 cells, as experiment=x"
    )
    for other in (("a blink", 3, 21), (stated, 21, 21), (stated, 3, None), ("5 minutes a cell", 3, 21)):
        assert planning.narrowed("experiment=x", *other) == f"experiment=x says: {other[0]}"
    assert planning.combinations({"method": "nosp,norm", "seed": "0,1,2"}) == 6
    assert planning.combinations({"keep_frac": "range(0.1,0.5)"}) is None


def test_a_sweep_ends_with_its_scores() -> None:
    found = {
        "config": {"method": {"name": "norm"}, "task": {"name": "sst2"}, "seed": 1},
        "best_metric": "accuracy",
        "scores": {"val/accuracy": 0.75, "test/accuracy": 0.5},
        "kept": {"achieved": 0.3},
        "cost": {"saved_bytes": 1, "saved_bytes_dense": 4},
    }
    text = text_of(terminal.score_table([found, {"scores": {"val/accuracy": 1.0}}]))
    assert [part in text for part in ("norm sst2 s1", "0.7500", "0.5000", "0.3000", "0.25 x")] == [True] * 5
