"""The documents hold: what is generated is fresh, links lead somewhere, the README is short, the examples run."""

import csv
import json
import re
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from keepfrac.reporting import documents
from keepfrac.run import identity
from keepfrac.run.run import run
from keepfrac.training.finetune import FineTune
from tests.contract.test_conf import CONF
from tests.integration.conftest import sentences

ROOT = documents.ROOT
DOCUMENTS = [
    path
    for pattern in ("*.md", "conf/*.md", "src/**/*.md", "tests/*.md", "multirun/*.md")
    for path in sorted(ROOT.glob(pattern))
]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = documents.METHODS.read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_what_is_generated_is_fresh():
    stale = [str(path.relative_to(ROOT)) for path, text in documents.pages().items() if path.read_text("utf-8") != text]
    assert not stale, "type: make docs"


def test_the_readme_is_read_in_a_minute():
    assert len(README.encode()) <= 12_288
    assert README.count("\n") <= 160


def points_to_dense(note: str) -> dict[tuple[str, float], list[float]]:
    """What the records say of a note of the README's table: test scores less dense's, by method and keep_frac."""
    task, names = {
        "a": ("rotten_tomatoes", ["sweep_glue"]),
        "b": ("sst2", ["l0_sst2", "taylor_sst2", "lora_sst2", "distill_sst2"]),
    }[note]
    found, dense = defaultdict(list), 0.0  # taylor_sst2 has no dense cell: its settings are those of l0_sst2
    for name in names:
        with (ROOT / f"multirun/records/{name}.csv").open(encoding="utf-8") as file:
            cells = [cell for cell in csv.DictReader(file) if cell["task"] == task]
        dense = next((float(cell["test_score"]) for cell in cells if cell["method"] == "nosp"), dense)
        for cell in cells:
            key = cell["method"], float(cell["keep_asked"])
            found[key].append(round(100 * (float(cell["test_score"]) - dense), 1))
    return found


def test_the_figures_of_the_readme_stand_in_the_records():
    lines = json.loads((ROOT / "multirun/records/bench_backward.json").read_text("utf-8"))
    costs = {
        (line["config"], line["keep_frac"]): (round(line["bytes_ratio"], 2), round(line["time_ratio"], 2))
        for line in lines
        if (line["dtype"], line["batch"]) == ("fp32", "full")
    }
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \| (.*?) \| (.*?) \| .* \| (\S+) \((.)\) \|$", README, re.M)
    assert len(rows) == 7
    for method, keep, stored, time, score, note in rows:
        key = method, float(keep)
        assert key not in costs or (float(stored), float(time)) == costs[key], method
        assert float(score) in points_to_dense(note)[key], method


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    path = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(found), f"{link}: no such heading"


def test_the_map_names_each_document_and_the_plan_each_package():
    assert [name for name in NAMES if name != "README.md" and f"({name})" not in README] == []
    plan = (ROOT / "src/README.md").read_text(encoding="utf-8")
    packages = [path.parent.name for path in (ROOT / "src/keepfrac").glob("*/__init__.py")]
    assert [name for name in packages if f"`{name}`" not in plan] == []
    assert [path.name for path in (ROOT / "src").glob("[!_]*.py") if f"({path.name})" not in plan] == []


def test_the_files_that_the_plan_names_are_there():
    plan = (ROOT / "src/README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+(?:\.py|/))`", plan)
    assert len(named) > 5
    assert [name for name in named if not any((ROOT / at / name).exists() for at in ("src", "src/keepfrac", "."))] == []


def test_the_classes_that_the_guides_name_exist():
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    guides = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("README.md"))
    named = set(re.findall(r"`((?:[A-Z][a-z0-9]+){2,})`", guides))
    assert "WeightPruner" in named
    assert [name for name in sorted(named) if not re.search(rf"\b{name}\b", code)] == []


def test_each_key_says_what_it_means():
    page = (CONF / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| (`\S+`) \| .* \|  \| .*\|$", page, re.M) == []


def test_the_hooks_of_the_guide_are_those_of_the_loop():
    named = re.findall(r"`(\w+)\([\w, ]*\)`", GUIDE.partition("### Hooks")[2].partition("###")[0])
    assert len(named) >= 7
    assert [name for name in named if name not in vars(FineTune)] == []


def test_the_method_of_the_guide_trains(tmp_path, monkeypatch):
    (code,), (config,) = (re.findall(rf"```{kind}\n(.*?)```", GUIDE, re.S) for kind in ("python", "yaml"))
    (tmp_path / "freeze.py").write_text(code)
    (tmp_path / "conf/method").mkdir(parents=True)
    (tmp_path / "conf/method/freeze.yaml").write_text(config.replace("keepfrac.methods.freeze.", "freeze."))
    files = {name: tmp_path / f"{name}.csv" for name in ("train", "validation", "test")}
    for seed, file in enumerate(files.values()):
        file.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in sentences(16, seed)))
    monkeypatch.setenv("KEEPFRAC_MULTIRUN", str(tmp_path / "multirun"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    identity.register()
    words = [
        f"hydra.searchpath=[file://{tmp_path}/conf]",
        "method=freeze",
        "keep_frac=0.5",
        "model=bert_tiny",
        "task=csv",
    ]
    words += [f"task.{name}_file={file}" for name, file in files.items()]
    words += ["steps=2", "batch_size=8", "probe_steps=0", "logger=csv", "hardware.precision=32-true"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = run(compose("config", overrides=words))
    assert found["kept"]["achieved"] == 0.5
    assert found["kept"]["unit"] == "trained layers"
