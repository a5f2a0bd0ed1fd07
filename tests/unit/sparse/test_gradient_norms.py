import torch

from keepfrac.sparse.convert import sparsify
from keepfrac.sparse.gradient_norms import GradientNorms
from keepfrac.sparse.selection.selectors import Selector
from tests.tiny import stock


def network(keep_frac=0.3):
    net = stock(hidden=16, heads=2, inner=32, vocab_size=30)
    handle = sparsify(net, ("linear",), Selector(keep_frac, unit="token", rule="sampled", scale="inverse"), 0)
    return net, handle, GradientNorms(net, handle)


def batch(seed=0, rows=3, length=7):
    ids = torch.randint(5, 30, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.arange(rows) % 2}


def step(net, data):
    net(**data).loss.backward()


def test_norms_are_those_of_the_gradients():
    net, _, norms = network()
    seen, data = [], batch()
    output = net.bert.encoder.layer[0].intermediate.dense
    output.register_forward_hook(lambda module, args, y: y.register_hook(seen.append) and None)
    step(net, data)
    norms.fill_table()
    site = norms.row_of_site[output.site.number]
    for row, table in enumerate(norms.table.values()):
        real = int(data["attention_mask"][row].sum())
        assert table.shape == (len(norms.row_of_site), real)
        torch.testing.assert_close(table[site].float(), seen[0][row, :real].norm(dim=-1), rtol=1e-2, atol=1e-7)


def test_the_first_pass_goes_by_the_input_alone_and_the_second_by_both():
    net, handle, norms = network()
    step(net, batch())
    assert all(site.factors is None for site in norms.sites.values())
    step(net, batch())
    for number, site in norms.sites.items():
        wanted = torch.zeros(3, 7)
        for row, table in enumerate(norms.table.values()):
            wanted[row, : table.shape[1]] = table[norms.row_of_site[number]].float()
        got = site.factors.view(3, 7)
        assert torch.equal(got[0], wanted[0]) and torch.equal(got[1, :4], wanted[1, :4])
    assert handle.kept()["achieved"] < 0.4


def test_a_new_sentence_gets_the_mean_of_the_known():
    net, _, norms = network()
    step(net, batch())
    mixed = {key: torch.cat([batch()[key][:1], batch(seed=9)[key][:1]]) for key in batch()}
    step(net, mixed)
    for site in norms.sites.values():
        known, new = site.factors.view(2, 7)
        torch.testing.assert_close(new, known.mean().expand(7))


def test_padding_does_not_make_another_sentence():
    net, _, norms = network()
    step(net, batch())
    longer = {key: torch.nn.functional.pad(value, (0, 3)) for key, value in batch().items() if value.ndim == 2}
    step(net, batch() | longer)
    norms.fill_table()
    assert len(norms.table) == 3


def test_evaluation_and_a_forward_without_backward_leave_no_trace():
    net, _, norms = network()
    net(**batch())
    net.eval()
    net(**batch(seed=1))
    net.train()
    net(**batch(seed=2))
    norms.fill_table()
    assert norms.table == {}


def test_once_removed_it_records_nothing():
    net, _, norms = network()
    norms.remove()
    step(net, batch())
    assert norms.table == {}


def test_it_is_unbiased_with_norms_too():
    (net, _, _norms), (whole, _, _), data = network(), network(1.0), batch()
    weight, exact = (one.bert.encoder.layer[0].output.dense.weight for one in (net, whole))
    step(whole, data)
    want = exact.grad
    step(net, data)
    draws = []
    for _ in range(300):
        net.zero_grad()
        step(net, data)
        draws.append(weight.grad.clone())
    estimates = torch.stack(draws)
    standard_error = (estimates.var(0).sum() / len(draws)).sqrt()
    assert (estimates.mean(0) - want).norm() < 3 * standard_error
    assert standard_error < 0.2 * want.norm()
