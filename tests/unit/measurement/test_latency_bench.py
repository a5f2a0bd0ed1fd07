import json

import pytest

from keepfrac.measurement import latency
from keepfrac.measurement.latency import Conditions, line, percentile
from keepfrac.models.cut import cut
from keepfrac.prune.structure import LayerStructure, Structure
from src.measure import main
from tests.tiny import tiny


def test_percentiles_are_by_the_nearest_rank():
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.5) == 50 and percentile(values, 0.95) == 95 and percentile([3.0], 0.95) == 3


def test_a_model_beside_its_original(tmp_path, monkeypatch, capsys):
    whole = LayerStructure((0, 1, 2, 3), tuple(range(48)))
    cut(tiny(), Structure((whole, LayerStructure((1,), (2,)), LayerStructure((), ())))).save_pretrained(tmp_path)
    places = (Conditions("eager", "float32", 2, 8), Conditions("eager", "bfloat16", 1, 8))
    monkeypatch.setattr(latency, "GRID", (*places, Conditions("eager", "float32", 2, 4000)))  # too long for it
    monkeypatch.setattr(latency, "peaks", lambda folder, threads: {"own": 1.0, "dense": 2.0})
    assert main([str(tmp_path), "--latency", "--repeats", "3"]) == 0
    found = json.loads((tmp_path / "latency.json").read_text())
    first, second, third = found["rows"]
    assert first["ratio"] == pytest.approx(first["own_p50_ms"] / first["dense_p50_ms"])
    assert first["own_per_second"] == pytest.approx(2e3 / first["own_p50_ms"]) and second["dtype"] == "bfloat16"
    assert "failed" in third and "ratio" not in third and "not measured" in line(third)
    assert found["file_bytes"]["own"] < found["file_bytes"]["dense"] and found["threads"] == 1
    assert "to dense" in capsys.readouterr().out
