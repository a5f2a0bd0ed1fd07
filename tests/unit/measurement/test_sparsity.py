import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from keepfrac.errors import UserError
from keepfrac.measurement.sparsity import matrices, show, sparsity, totals
from keepfrac.models.packed import FILE, load_packed, main, pack, packed_bytes, save_packed, unpack
from keepfrac.prune.masks import num_kept
from keepfrac.training.weight_pruning import matrices_of
from tests.tiny import inputs, tiny


@pytest.fixture(scope="module")
def bert_base():
    with torch.device("meta"):
        return BertForSequenceClassification(BertConfig())


def test_bert_base_at_a_twentieth(bert_base):
    names = matrices_of(bert_base)
    sizes = [bert_base.get_parameter(name).numel() for name in names]
    assert len(names) == 72 and sum(sizes) == 84_934_656 and set(matrices(bert_base)) == set(names)
    assert num_kept(0.05, sum(sizes)) == 4_246_733
    assert sum(num_kept(0.05, size) for size in sizes) == 4_246_728
    params = sum(parameter.numel() for parameter in bert_base.parameters())
    counts = {name: (num_kept(0.05, size), size) for name, size in zip(names, sizes, strict=True)}
    found = totals(counts, params, params - sum(sizes) + 4_246_728)
    assert found["compression_matrices"] == pytest.approx(20, abs=1e-3)
    assert found["compression_model"] == pytest.approx(3.80, abs=5e-3)


def pruned(share=0.9):
    net = tiny()
    with torch.no_grad():
        for name in matrices_of(net):
            weight = net.get_parameter(name)
            weight[torch.rand_like(weight) < share] = 0
    return net


def test_zeros_are_counted():
    net = pruned()
    found = sparsity(net, 10_000_000)
    weights = [net.get_parameter(name) for name in matrices_of(net)]
    kept, size = sum(int((w != 0).sum()) for w in weights), sum(w.numel() for w in weights)
    params = list(net.parameters())
    assert (found["matrices"], found["matrix_weights"], found["matrix_nonzeros"]) == (18, size, kept)
    assert found["compression_matrices"] == size / kept
    assert found["compression_model"] == sum(p.numel() for p in params) / sum(int((p != 0).sum()) for p in params)
    assert 10_000_000 - found["macs_nonzero"] == 128 * (size - kept)
    assert found["bytes_dense"] == 4 * sum(p.numel() for p in params)
    assert [row["matrix"] for row in found["rows"]] == list(matrices_of(net))


def test_any_model_can_be_counted():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight[:3] = 0
    found = sparsity(net, 10_000)
    assert (found["matrix_nonzeros"], found["matrix_weights"]) == (24, 36)


def test_dense_matrices_are_not_listed(capsys):
    show(sparsity(tiny(), 0), Console(width=200))
    dense = capsys.readouterr().out
    show(sparsity(pruned(), 0), Console(width=200))
    assert "layer.0" not in dense and "layer.0.attention.self.query.weight" in capsys.readouterr().out


def test_packed_weights_come_back_bit_by_bit():
    state = {
        "sparse": torch.randn(7, 9) * (torch.rand(7, 9) < 0.2),
        "dense": torch.randn(5, 3),
        "minus": torch.tensor([0.0, -0.0, 0.0, 2.0] + [0.0] * 60),
        "half": (torch.randn(33) * (torch.rand(33) < 0.1)).half(),
        "ids": torch.arange(4),
        "empty": torch.zeros(0, 3),
        "odd": torch.tensor([float("nan"), float("inf")] + [0.0] * 30),
    }
    state["tied"] = state["sparse"]
    tensors, metadata = pack(state)
    again = unpack(tensors, metadata)
    assert again.keys() == state.keys()
    for name, tensor in state.items():
        kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        kind = kinds[tensor.element_size()]
        assert again[name].dtype == tensor.dtype and again[name].shape == tensor.shape
        assert torch.equal(again[name].view(kind), tensor.view(kind)), name
    assert packed_bytes(state) == sum(t.numel() * t.element_size() for t in tensors.values())
    assert packed_bytes(state) < sum(t.numel() * t.element_size() for t in state.values())


def test_a_plain_folder_comes_back_from_the_command_line(tmp_path, capsys):
    assert main([str(save_packed(pruned(), tmp_path / "a")), str(tmp_path / "b")]) == 0
    state = load_file(tmp_path / "b" / "model.safetensors")
    packed = load_packed(tmp_path / "a").state_dict()
    assert all(torch.equal(tensor, packed[name]) for name, tensor in state.items())
    assert main([str(tmp_path / "a"), str(tmp_path / "a")]) == 1
    assert "give another folder" in capsys.readouterr().err
    (tmp_path / "a" / FILE).write_bytes(b"torn")
    assert main([str(tmp_path / "a"), str(tmp_path / "c")]) == 1
    assert "cannot be read as packed weights" in capsys.readouterr().err
    with pytest.raises(UserError, match="sparse enough"):
        save_packed(tiny(), tmp_path / "d")


def test_int8_is_near_and_keeps_the_zeros():
    weight = torch.randn(40, 50) * (torch.rand(40, 50) < 0.1)
    weight[3] = 0
    exact, small = pack({"w": weight}), pack({"w": weight}, int8=True)
    again = unpack(*small)["w"]
    assert sum(t.nbytes for t in small[0].values()) < 0.7 * sum(t.nbytes for t in exact[0].values())
    assert not again[weight == 0].any()
    assert ((again - weight).abs() <= weight.abs().amax(1, keepdim=True) / 254 + 1e-7).all()


def test_a_packed_folder_is_the_same_model(tmp_path):
    net = pruned()
    save_packed(net, tmp_path)
    again = load_packed(tmp_path)
    assert type(again) is type(net)
    torch.testing.assert_close(again(**inputs()).logits, net(**inputs()).logits)
