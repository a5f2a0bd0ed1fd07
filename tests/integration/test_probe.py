"""The probe: fidelity is exact where nothing is left out, and looking at it does not change a run."""

from safetensors.torch import load_file

from keepfrac.run import identity
from keepfrac.run.probe import probe_of
from keepfrac.run.run import run
from keepfrac.run.sites import sites
from src.measure import main


def test_with_everything_kept_the_gradients_are_the_dense_ones(composed):
    cfg = composed("method=norm", "keep_frac=1.0", "epochs=1")
    run(cfg)
    figures, by_weight = probe_of(identity.cell(cfg).folder).fidelity()
    assert figures["relative_error_dw"] == figures["relative_error_dx"] == 0.0
    assert len(by_weight) == 12


def test_linear_sites_leave_dx_exact_and_the_bytes_are_as_predicted(composed):
    cfg = composed("method=norm", "keep_frac=0.3", "epochs=1")
    run(cfg)
    found = sites(identity.cell(cfg).folder)
    total = found["total"]
    assert total["relative_error_dx"] == 0.0 and 0.3 < total["cosine_dw"] < 1.0
    assert abs(total["saved_bytes_predicted"] - total["saved_bytes"]) < 0.005 * total["saved_bytes"]
    assert len(found["sites"]) == 8 and main([str(identity.cell(cfg).folder), "--sites", "--json"]) == 0


def test_watching_the_fidelity_changes_nothing(composed):
    plain, watched = composed("method=rand"), composed("method=rand", "fidelity_every=3", "name=watched")
    run(plain), run(watched)
    folders = [identity.cell(cfg).folder for cfg in (plain, watched)]
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in folders)
    assert all((one[name] == other[name]).all() for name in one)
    lines = [(folder / "metrics.csv").read_text().splitlines() for folder in folders]
    never = [[line for line in found if "kept/never_selected" in line] for found in lines]
    assert never[0] == never[1] and never[0]
    assert "fidelity/cosine_dw" in (folders[1] / "metrics.csv").read_text()


def test_a_folder_without_a_finished_run_is_one_line(tmp_path, capsys):
    assert main([str(tmp_path), "--sites"]) == 1
    assert "not the folder of a finished run" in capsys.readouterr().err
