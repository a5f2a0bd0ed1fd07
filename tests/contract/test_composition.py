"""Each method goes on from what each other left: zeros stay, shapes stay, it reloads, the results name both.

The methods are those of conf/method: a new yaml is tested with all others, without an edit. One that needs settings to
do its work in two steps names them in settings_of.py; a pair that is refused by one clear error stands in REFUSED.
"""

import shutil

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class
from safetensors.torch import load_file

from keepfrac.errors import UserError
from keepfrac.models.cut import counts_of
from keepfrac.models.load import load_body
from keepfrac.prune.masks import FILE, Masks, top_mask
from keepfrac.run import identity
from keepfrac.run.run import run
from keepfrac.training.structured_pruning import Pruner
from tests.contract.settings_of import CONF, KEEP, METHODS, TWO_STEPS, matching, words
from tests.contract.test_conf import composed as settings
from tests.integration.conftest import sentences

QUICK = {"nosp", "norm", "l0", "l0_factorized", "magnitude", "layer_drop"}  # one of each kind
CUTS = {name for name in METHODS if issubclass(get_class(settings(f"method={name}")["method"]["_target_"]), Pruner)}
REFUSED: dict[tuple[str, str], str] = {  # patterns of (first, second): what the second one says
}
UNMASKED = {"l0_factorized"}  # as second: refuse what would fill zeros of the matrices that they decompose


def pairs():
    for first in METHODS:
        for second in METHODS:
            slow = () if {first, second} <= QUICK else (pytest.mark.slow,)
            yield pytest.param(first, second, marks=slow, id=f"{first}-{second}")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for number, name in enumerate(("train", "validation", "test")):
        lines = ["text,label", *(f"{text},{label}" for text, label in sentences(16, number))]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def two_steps(data, tmp_path_factory):
    """A function from a method and overrides to (results, folder) of a run of two steps."""
    root = tmp_path_factory.mktemp("multirun")
    identity.register()

    def run_(method: str, *overrides: str):
        with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(CONF), version_base="1.3"):
            patch.setenv("KEEPFRAC_MULTIRUN", str(root))
            base = [*words(method, TWO_STEPS), "model=bert_tiny", "task=csv", "logger=csv", "steps=2", "batch_size=8"]
            base += [f"task.{name}_file={data}/{name}.csv" for name in ("train", "validation", "test")]
            base += ["hardware.precision=32-true", "hardware.threads=1", "probe_steps=0", "lr=1e-3"]
            cfg = compose("config", overrides=[*base, *overrides])
            return run(cfg), identity.cell(cfg).folder

    return run_


@pytest.fixture(scope="module")
def left_by(two_steps, tmp_path_factory):
    """A function from a method to the folder of its run; with masks of all matrices, or of the embeddings alone."""
    done = {}

    def folder_(method: str, everywhere: bool):
        if (method, everywhere) not in done:
            folder = tmp_path_factory.mktemp("left") / method
            shutil.copytree(two_steps(method, "keep_frac=0.75", "name=first")[1], folder)
            weights = load_file(folder / "model" / "model.safetensors")
            named = [n for n, w in weights.items() if w.ndim == 2 and ("encoder" in n or "word_embeddings" in n)]
            names = named if everywhere else [name for name in named if "embeddings" in name]
            Masks({n: top_mask(weights[n].abs(), weights[n].numel() // 2) for n in names}).save(folder / "model")
            done[method, everywhere] = folder
        return done[method, everywhere]

    return folder_


@pytest.mark.parametrize(("first", "second"), list(pairs()))
def test_a_method_goes_on_from_what_another_left(two_steps, left_by, first, second):
    before = left_by(first, everywhere=second not in UNMASKED)
    keep = KEEP.get(second, 0.45)
    more = (f"keep_frac={keep}", "model=from_run", f"model.run={before}", f"name={first}")
    if refusal := matching(REFUSED, (first, second)):
        with pytest.raises(UserError, match=refusal):
            two_steps(second, *more)
        return
    found, folder = two_steps(second, *more)
    was, now = (counts_of(load_body(path / "model")) for path in (before, folder))
    if second in CUTS:
        assert found["kept"]["achieved"] <= keep
        assert len(now) <= len(was)
    else:
        assert now == was
    weights, masks = (load_file(folder / "model" / name) for name in ("model.safetensors", FILE))
    assert all(weights[name].shape == mask.shape for name, mask in masks.items())
    assert all(torch.all(weights[name][~mask] == 0) for name, mask in masks.items())
    assert [stage["name"] for stage in found["provenance"]["stages"]] == [first]
    assert found["config"]["method"]["name"] == second
    assert found["size"]["params"] <= found["size"]["params_dense"]
