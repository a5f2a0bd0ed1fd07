"""`late` and `wta` in whole runs: a kill, masks, cut models, a budget of bytes, and what `measure --sites` says."""

import json
import subprocess
import sys

import pytest
import torch

from keepfrac.prune.masks import Masks, top_mask
from keepfrac.run import identity
from keepfrac.run.run import run
from keepfrac.run.sites import sites
from tests.bench import bench_backward
from tests.runs import weights_of

FEW = ("probe_steps=0", "model.dropout=0.1")


def test_gradient_norms_change_what_is_kept_from_the_second_epoch_on(composed):
    first = ("method=wta", "keep_frac=0.4", *FEW)
    for steps, equal in ((12, True), (20, False)):
        two = [
            composed(
                *first, f"method.gradient_norms={value}", f"steps={steps}", f"eval_every={steps}", f"name=n{steps}"
            )
            for value in ("true", "false")
        ]
        for cfg in two:
            run(cfg)
        one, other = (weights_of(cfg) for cfg in two)
        assert all(torch.equal(one[name], other[name]) for name in one) == equal


def test_zeros_of_a_pruned_model_stay(composed):
    cfg = composed("method=nosp", "steps=2", "name=first", *FEW)
    run(cfg)
    folder, weights = identity.cell(cfg).folder, weights_of(cfg)
    names = [name for name in weights if "encoder" in name and weights[name].ndim == 2]
    masks = {name: top_mask(weights[name].abs(), weights[name].numel() // 4) for name in names}
    Masks(masks).save(folder / "model")
    again = composed("method=late", "keep_frac=0.5", "model=from_run", f"model.run={folder}", "steps=6", *FEW)
    found, after = run(again), weights_of(again)
    assert all((after[name][~mask] == 0).all() and (after[name][mask] != 0).any() for name, mask in masks.items())
    assert found["size"]["nonzeros"] < found["size"]["params"]


def test_a_cut_model_is_trained_further(composed):
    cut = composed("method=magnitude", "keep_frac=0.4", "steps=4", "name=first", *FEW)
    run(cut)
    cfg = composed("method=late", "keep_frac=0.3", "model=from_run", f"model.run={identity.cell(cut).folder}", *FEW)
    found = run(cfg)
    assert {name: w.shape for name, w in weights_of(cfg).items()} == {
        name: w.shape for name, w in weights_of(cut).items()
    }
    assert 0 < found["kept"]["achieved"] < 0.4


def test_sites_and_their_bytes(composed):
    cfg = composed("method=late", "keep_frac=0.3", "steps=4", *FEW)
    run(cfg)
    found = sites(identity.cell(cfg).folder)
    total, rows = found["total"], found["sites"]
    assert [row["site"].rpartition(".")[2] for row in rows] == ["attention", "feed_forward"] * 2
    assert total["saved_bytes"] < 0.6 * total["saved_bytes_dense"]
    assert total["relative_error_dx"] < 0.05
    assert total["peak_bytes"] > 0 and total["peak_bytes_dense"] > 0
    assert all(row["bytes_predicted"] == row["bytes_kept"] for row in rows)


def test_the_bench_runs_and_its_record_has_what_is_promised(root, tmp_path):
    out = tmp_path / "rows.json"
    command = ["-m", "tests.bench.bench_backward", "--quick", "--threads", "1", "--no-fidelity", "--dtypes", "fp32"]
    command += ["--batches", "full", "padded", "--groups", "baselines", "late", "--out", str(out)]
    subprocess.run([sys.executable, *command], cwd=root, check=True, capture_output=True, timeout=250)
    rows = json.loads(out.read_text())
    promised = {"config", "keep_frac", "dtype", "device", "bytes_ratio", "time_ratio", "cosine_dw"}
    assert all(promised <= row.keys() and row["time_ratio"] > 0 for row in rows)
    by_config = {row["config"]: row for row in rows if row["batch"] == "full"}
    assert {"dense", "checkpoint", "recompute_gelu", "backrazor, eager", "late"} <= by_config.keys()
    assert by_config["dense"]["bytes_ratio"] == pytest.approx(1, abs=0.01)
    assert by_config["recompute_gelu"]["bytes_ratio"] == pytest.approx(1 - 4 / 16.5, abs=0.01)
    assert by_config["late"]["bytes_ratio"] < 0.2 < by_config["backrazor, eager"]["bytes_ratio"]
    assert out.with_suffix(".svg").read_text().startswith("<?xml")


def test_the_bench_on_a_gpu_is_refused_without_one(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        bench_backward.main(["--device", "cuda", "--quick"])
    assert "no NVIDIA GPU" in capsys.readouterr().err
