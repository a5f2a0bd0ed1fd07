"""The picture of a constraint's path, drawn from metrics.csv alone."""

from keepfrac.reporting.paths import PANELS, SCORES, constrained, draw_paths

STEPS = range(9, 100, 10)


def write(folder, names):
    folder.mkdir(parents=True)
    lines = [f"{step},{name},{1 - step / 200}" for step in STEPS for name in names]
    (folder / "metrics.csv").write_text("\n".join(["step,metric,value", *lines]) + "\n")
    return folder


def test_runs_without_a_constraint_have_no_picture(tmp_path):
    write(tmp_path / "nosp", ["train/loss", "val/accuracy"])
    assert constrained(tmp_path) == [] and draw_paths(tmp_path, tmp_path) is None
    assert not (tmp_path / "report_paths.png").exists()


def test_every_figure_of_the_path_is_drawn(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda axis, *a, **k: (drawn.append(k["label"]), plot(axis, *a, **k))[1])
    named = [name for names in PANELS.values() for name in names]
    scores = ["val/accuracy", "val/precision", "val/recall", "val/f1"]
    write(tmp_path / "l0", [*named, *scores, "val/loss"])
    write(tmp_path / "nosp", ["train/loss"])
    ((name, curves),) = constrained(tmp_path)
    assert name == "l0" and set(named) <= curves.keys()
    assert draw_paths(tmp_path, tmp_path) == tmp_path / "report_paths.png"
    assert sorted(drawn) == sorted([*named, *scores]) and SCORES not in PANELS
    assert {"loss/lr_gates", "loss/lr_multipliers", "kept/target", "loss/lambda2"} <= set(drawn)


def test_one_run_has_its_picture_too(tmp_path):
    folder = write(tmp_path / "l0", ["kept/target", "kept/expected"])
    assert draw_paths(folder, folder).stat().st_size > 1000
