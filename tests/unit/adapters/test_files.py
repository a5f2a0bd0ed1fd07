"""Updates in files, beside a model's weights."""

import torch
from transformers import AutoModelForSequenceClassification

from keepfrac.adapters.files import attach_saved
from tests.tiny import inputs, tiny
from tests.unit.adapters.test_units import tuned


def test_a_model_saved_with_its_updates_gets_them_back(tmp_path):
    net = tuned(tiny(), ("query", "value"), rank=4, sparse=10)
    net.save_pretrained(tmp_path)
    plain, info = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and all(".updates." in key for key in info["unexpected_keys"])
    assert not torch.allclose(plain(**inputs()).logits, net(**inputs()).logits, atol=1e-2)
    assert attach_saved(plain, tmp_path)
    assert torch.equal(plain.eval()(**inputs()).logits, net(**inputs()).logits)
    assert plain.state_dict().keys() == net.state_dict().keys()
    assert not attach_saved(tiny(), tmp_path / "nothing")
