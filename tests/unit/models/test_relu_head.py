import subprocess
import sys

import pytest
import torch

from keepfrac.models.relu_head import with_relu_head
from tests.unit.models.tiny import inputs, tiny

OUTSIDE = """
import sys, torch
from transformers import AutoModelForSequenceClassification
net = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
torch.save(net(**torch.load(sys.argv[1] + "/batch.pt")).logits, sys.argv[1] + "/logits.pt")
"""


def test_the_classifier_reads_the_positive_part_of_the_pooler():
    net = tiny().train()
    own = with_relu_head(net)
    assert own.training and with_relu_head(own) is own and own.state_dict().keys() == net.state_dict().keys()
    net.eval(), own.eval()
    pooled = net.bert(**inputs()).pooler_output
    torch.testing.assert_close(own(**inputs()).logits, net.classifier(torch.relu(pooled)))
    assert not torch.allclose(own(**inputs()).logits, net(**inputs()).logits)


def test_it_loads_where_the_project_is_not_installed(tmp_path):
    own = with_relu_head(tiny())
    own.save_pretrained(tmp_path)
    torch.save(inputs(), tmp_path / "batch.pt")
    subprocess.run([sys.executable, "-c", OUTSIDE, str(tmp_path)], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), own(**inputs()).logits)


def test_other_models_have_no_such_head():
    with pytest.raises(ValueError, match="DistilBertForSequenceClassification"):
        with_relu_head(tiny("distilbert"))
