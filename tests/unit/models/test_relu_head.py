import pytest
import torch

from keepfrac.models.relu_head import with_relu_head
from tests.tiny import inputs, tiny
from tests.unit.models.elsewhere import logits_elsewhere


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
    own.save_pretrained(tmp_path / "model")
    torch.testing.assert_close(logits_elsewhere(tmp_path / "model", tmp_path / "again"), own(**inputs()).logits)


def test_other_models_have_no_such_head():
    with pytest.raises(ValueError, match="DistilBertForSequenceClassification"):
        with_relu_head(tiny("distilbert"))
