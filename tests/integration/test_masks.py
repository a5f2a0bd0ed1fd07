"""Masks live with the model: whatever method trains it further, what was zero stays zero."""

import pytest
import torch
from safetensors.torch import load_file

from keepfrac.prune.masks import FILE, Masks, top_mask
from keepfrac.run import identity
from keepfrac.run.run import run


@pytest.fixture
def masked(composed):
    """The folder of a run whose model has masks, and the masks."""
    cfg = composed("method=nosp", "steps=2", "name=first", "probe_steps=0")
    run(cfg)
    folder = identity.cell(cfg).folder
    weights = load_file(folder / "model" / "model.safetensors")
    names = [name for name in weights if "encoder" in name and weights[name].ndim == 2]
    masks = Masks({name: top_mask(weights[name].abs(), weights[name].numel() // 4) for name in names})
    masks.save(folder / "model")
    return folder, dict(masks.items())


@pytest.mark.parametrize("method", ["nosp", "norm", "l0"])
def test_zeros_stay(composed, masked, method):
    folder, masks = masked
    more = ("method.gate_lr=2", "method.prefinetune=0.1") if method == "l0" else ()
    cfg = composed(f"method={method}", *more, "keep_frac=0.5", "model=from_run", f"model.run={folder}", "probe_steps=0")
    found = run(cfg)
    delivered = identity.cell(cfg).folder / "model"
    weights, after = load_file(delivered / "model.safetensors"), load_file(delivered / FILE)
    assert all((weights[name][~mask] == 0).all() for name, mask in after.items())
    assert found["size"]["nonzeros"] < found["size"]["params"]
    if method == "l0":  # cut with the model
        assert all(weights[name].shape == mask.shape for name, mask in after.items())
        assert sum(m.numel() for m in after.values()) < sum(m.numel() for m in masks.values())
    else:
        assert all(torch.equal(after[name], mask) for name, mask in masks.items())


def test_ranks_are_not_gated_where_masks_hold(composed, masked):
    from keepfrac.errors import UserError

    with pytest.raises(UserError, match="leave ranks out"):
        run(composed("method=l0_factorized", "model=from_run", f"model.run={masked[0]}"))
