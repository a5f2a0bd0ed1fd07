"""What the page is made of: curves, content without secrets, one file that reaches nowhere."""

import base64
import gzip
import hashlib
import json
import re
import subprocess
import sys

import pytest

from keepfrac.errors import UserError
from keepfrac.reporting.build import of_sweep
from keepfrac.reporting.page import html
from keepfrac.reporting.page.content import content_of
from keepfrac.reporting.page.traces import POINTS, ROOT, command_of, curves, downsample, rounded, tail
from src.report import main
from tests.browser import sweeps

SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def embedded_in(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', page)[1])


class TestCurves:
    @pytest.mark.parametrize(
        ("lines", "steps", "found"),
        [
            (
                ["9,train/loss,0.5", "1,train/loss,0.7", "9,val/f1,0.25", "9,val/f1,0.5"], None,
                {"train/loss": ([1, 9], [0.7, 0.5]), "val/f1": ([9], [0.5])},
            ),
            (  # the delivered model's scores are no part of a curve
                ["9,val/f1,0.5", "10,val/f1,0.9", "10,test/f1,0.9", "10,train/loss,0.3"], 10,
                {"val/f1": ([9], [0.5]), "train/loss": ([10], [0.3])},
            ),
            (["0,val/f1,0.5"], 0, {"val/f1": ([0], [0.5])}),  # but of a run without steps they are
            (
                ["1,a,nan", "2,a,inf", "x,a,1", "3,a", "4,a,0.5", "5,a,0.", "6,", "\0"], None,
                {"a": ([1, 2, 4, 5], [None, None, 0.5, 0.0])},
            ),
        ],
    )  # fmt: skip
    def test_are_read_by_metric_and_step(self, tmp_path, lines, steps, found):
        path = tmp_path / "metrics.csv"
        path.write_text("\n".join(["step,metric,value", *lines]), encoding="utf-8")
        assert (curves(path) if steps is None else curves(path, steps=steps)) == found

    def test_of_no_file(self, tmp_path):
        assert curves(tmp_path / "metrics.csv") == {}

    def test_a_long_curve_keeps_its_ends_and_extremes(self):
        values = {step: float(step % 7) for step in range(10_000)}
        values[4321], values[5432] = 99.0, -99.0
        steps, kept = downsample(values)
        assert 100 < len(steps) <= POINTS
        assert (steps[0], steps[-1]) == (0, 9999)
        assert {99.0, -99.0} <= set(kept)
        assert steps == sorted(set(steps))

    @pytest.mark.parametrize("length", [1, 2, POINTS, POINTS + 1, POINTS + 2, 3 * POINTS - 1])
    def test_a_curve_of_any_length(self, length):
        steps, kept = downsample({10 * step: float(step) for step in range(length)})
        assert (len(steps), len(kept)) == (len(kept), len(steps))
        assert min(length, 100) <= len(steps) <= POINTS
        assert (steps[0], steps[-1]) == (0, 10 * (length - 1))

    def test_number(self):
        assert [rounded(value) for value in (1, 0.123456789, float("nan"), None, True, "1")] == [
            1, 0.1234568, None, None, None, None,
        ]  # fmt: skip


class TestLeavings:
    def test_the_tail_of_a_log_is_short_and_says_no_secret_and_no_path(self, tmp_path, monkeypatch):
        monkeypatch.setenv("WANDB_API_KEY", "hunter2hunter2")
        log = tmp_path / "run.log"
        lines = [f"line {number}" for number in range(3000)]
        lines += ["10%\r55%\r100%", f'File "{ROOT}/src/run.py"', "/home/me/data/x.csv", "key hunter2hunter2"]
        log.write_text("\n".join(lines), encoding="utf-8")
        found = tail(log).splitlines()
        assert len(found) == 40
        assert found[-4:] == ["100%", 'File "src/run.py"', ".../x.csv", "key ***"]
        assert tail(tmp_path / "none.log") == ""

    def test_the_command_is_exact_but_for_secrets(self):
        command = f"python -m src.main task.data_dir=/data/glue lr=1e-3 model.run={ROOT}/multirun/a logger.api_key=abc"
        found = command_of({"provenance": {"command": command}})
        assert found == "python -m src.main task.data_dir=/data/glue lr=1e-3 model.run=multirun/a logger.api_key=***"
        assert command_of({}) == ""


class TestContent:
    @pytest.fixture
    def content(self, tmp_path) -> dict:
        folder = sweeps.large(tmp_path / "demo")
        return content_of(of_sweep(folder), folder)

    def test_has_runs_arms_and_problems(self, content):
        assert (len(content["runs"]), len(content["arms"]), len(content["problems"])) == (42, 14, 2)
        run = content["runs"][0]
        assert (run["method"], run["seed"], run["model"]) == ("nosp", 0, "all-MiniLM-L6-v2")
        assert set(run["curves"]) == {"train/loss", "val/accuracy", "kept/achieved"}
        assert run["commit"] == "0123456789ab"

    def test_arms_name_their_runs_and_know_their_spread(self, content):
        runs = {run["identity"]: run for run in content["runs"]}
        for arm in content["arms"]:
            members = [runs[identity] for identity in arm["runs"]]
            assert {run["series"] for run in members} == {arm["series"]}
            assert sorted(run["seed"] for run in members) == arm["seeds"] == [0, 1, 2]
            assert arm["test"]["mean"] == pytest.approx(sum(run["test_score"] for run in members) / 3)
            assert arm["cost"]["step_seconds"]["sd"] > 0

    def test_latency_is_a_cost_where_it_was_measured(self, tmp_path):
        for seed, changes in enumerate(({}, {"cost.latency_seconds": 0.02})):
            sweeps.leave(tmp_path / str(seed), sweeps.run("sst2", "norm", 0.3, seed, **changes))
        content = content_of(of_sweep(tmp_path), tmp_path)
        assert [run["latency_seconds"] for run in content["runs"]] == [None, 0.02]
        assert content["arms"][0]["cost"]["latency_seconds"] == {"n": 1, "mean": 0.02, "sd": None}
        assert content["runs"][0]["date"] == "2026-01-02"

    def test_a_run_whose_lr_was_not_chosen_still_has_its_series(self, tmp_path):
        for lr, val in ((1e-5, 0.7), (5e-5, 0.8)):
            changes = {"config.lr": lr, "scores.val/accuracy": val, "identity": f"id{lr}"}
            sweeps.leave(tmp_path / str(lr), sweeps.run("sst2", "norm", 0.3, 0, **changes))
        content = content_of(of_sweep(tmp_path), tmp_path)
        assert [(run["lr"], run["series"]) for run in content["runs"]] == [(1e-5, "norm"), (5e-5, "norm")]
        assert [arm["runs"] for arm in content["arms"]] == [["id5e-05"]]

    def test_one_runs_folder_is_a_sweep_of_one(self, tmp_path):
        sweeps.leave(tmp_path / "cell", sweeps.run("sst2", "norm", 0.3, 0))
        content = content_of(of_sweep(tmp_path / "cell"), tmp_path / "cell")
        assert content["runs"][0]["cell"] == "cell"
        assert content["runs"][0]["curves"]

    def test_a_broken_result_is_a_problem(self, tmp_path):
        folder = tmp_path / "cell"
        folder.mkdir()
        (folder / "results.json").write_text("{", encoding="utf-8")
        (problem,) = content_of(of_sweep(tmp_path), tmp_path)["problems"]
        assert (problem["status"], problem["task"], problem["command"]) == ("unreadable", None, "")

    def test_says_no_secret(self, tmp_path, monkeypatch):
        monkeypatch.setenv("SOME_TOKEN", sweeps.SECRET)
        folder = sweeps.nasty(tmp_path / "demo")
        told = {"config.method.name": f"m-{sweeps.SECRET}", "kept.of": sweeps.SECRET}
        sweeps.leave(folder / "x", sweeps.run("sst2", "norm", 0.3, 5, **told))
        assert sweeps.SECRET not in json.dumps(content_of(of_sweep(folder), folder))


def test_no_two_of_twenty_series_look_alike():
    program = (html.ASSETS / "looks.js").read_text(encoding="utf-8")
    colours, markers = (
        re.findall(r'"([^"]+)"', re.search(rf"{name}:? (?:= )?\[(.*?)\]", program)[1]) for name in ("light", "MARKERS")
    )
    assert "colour: place % COLOURS.light.length, marker: MARKERS[place++ % MARKERS.length]" in program
    assert len({(colours[n % len(colours)], markers[n % len(markers)]) for n in range(20)}) == 20


class TestFile:
    PLOTLY = "/** licence **/ var a = '</script>';"

    @pytest.fixture
    def content(self, tmp_path) -> dict:
        folder = sweeps.nasty(tmp_path / "demo")
        return content_of(of_sweep(folder), folder)

    def test_values_cannot_end_their_element(self, content):
        page = html.page(content, self.PLOTLY)
        assert embedded_in(page) == json.loads(json.dumps(content))
        for mark in ("<b>bold", "<img", "owned'</script>"):
            assert mark not in page

    def test_a_value_is_no_placeholder(self, content):
        content["notes"] = ["{{program}} {{plotly}}"]
        assert embedded_in(html.page(content, self.PLOTLY))["notes"] == content["notes"]

    def test_only_scripts_with_a_known_hash_run_and_nothing_is_loaded(self, content):
        page = html.page(content, self.PLOTLY)
        policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
        (program,) = SCRIPT.findall(page)
        for script in (program, self.PLOTLY):
            assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "http" not in policy
        assert "unsafe" not in policy.split("; ")[1]
        own = re.sub(r"<script type=.*?</script>", "", page, flags=re.DOTALL)
        assert set(re.findall(r"https?://[^\s\"']*", own)) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"<(link|img|script)[^>]*(src|href)=\"(?!data:)", own)

    def test_plotly_comes_back_as_it_was(self, content):
        packed = re.search(r'id="plotly">(.*?)</script>', html.page(content, self.PLOTLY))[1]
        assert gzip.decompress(base64.b64decode(packed)).decode() == self.PLOTLY

    def test_the_same_runs_make_the_same_file(self, content):
        assert html.page(content, self.PLOTLY) == html.page(content, self.PLOTLY)

    def test_a_number_that_is_not_finite_is_never_written(self, tmp_path):
        changes = {"scores.test/accuracy": float("nan"), "config.lr": float("inf"), "cost.step_seconds": float("nan")}
        sweeps.leave(tmp_path / "cell", sweeps.run("sst2", "norm", 0.3, 0, **changes))
        html.page(content_of(of_sweep(tmp_path), tmp_path), self.PLOTLY)
        with pytest.raises(ValueError, match="not JSON compliant"):
            html.embedded({"x": float("nan")})

    def test_is_small(self, tmp_path):
        folder = sweeps.large(tmp_path / "demo")
        assert html.write_page(of_sweep(folder), folder, folder / "report.html").stat().st_size < 2_500_000

    def test_without_plotly_says_what_to_do(self, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        folder = sweeps.failures(tmp_path / "demo")
        with pytest.raises(UserError, match="make install"):
            html.write_page(of_sweep(folder), folder, folder / "report.html")


class TestCommand:
    def test_writes_the_page_unless_told_not_to(self, tmp_path, capsys):
        folder = sweeps.failures(tmp_path / "demo")
        assert main([str(folder), "--no-page"]) == 0
        assert not (folder / "report.html").exists()
        assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
        assert (tmp_path / "out" / "report.html").exists()
        assert "report.html" in capsys.readouterr().out.splitlines()[-1]

    def test_records_have_no_page(self, tmp_path, monkeypatch):
        monkeypatch.setenv("KEEPFRAC_MULTIRUN", str(tmp_path))
        sweeps.leave(tmp_path / "demo" / "cell", sweeps.run("sst2", "norm", 0.3, 0))
        assert main([str(tmp_path / "demo"), "--record", "--no-page", "--no-picture"]) == 0
        assert main(["--records", str(tmp_path / "records" / "demo.csv"), "--no-picture"]) == 0
        assert list(tmp_path.rglob("*.html")) == []

    def test_the_page_imports_neither_plotly_nor_torch(self, tmp_path):
        folder = sweeps.failures(tmp_path / "demo")
        code = f"import sys, src.report as m; m.main([{str(folder)!r}]); print(*sys.modules)"
        ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        assert not {"torch", "plotly", "pandas"} & set(ran.stdout.split())
        assert (folder / "report.html").exists()
