"""Seeds: different between steps, layers, ranks and runs; the same for a repetition and after a resume."""

import torch
from torch.utils.checkpoint import checkpoint

from keepfrac.sparse.act8bit.calls import SeedCounter


def test_seeds_differ_between_steps_layers_runs_and_ranks(monkeypatch):
    hidden = torch.zeros(1)
    seeds = {SeedCounter(run, layer).seed_for(hidden) for run in range(5) for layer in range(12)}
    one = SeedCounter(0, 0)
    seeds |= {one.seed_for(hidden) for _ in range(20)}
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    seeds |= {SeedCounter(0, layer).seed_for(hidden) for layer in range(12)}
    assert len(seeds) == 5 * 12 + 19 + 12  # (run 0, layer 0, call 1, rank 0) is there twice
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_counters_continue_where_they_were():
    one, other, hidden = SeedCounter(7, 3), SeedCounter(7, 3), torch.zeros(1)
    for _ in range(4):
        one.seed_for(hidden)
    other.calls = one.calls
    assert one.seed_for(hidden) == other.seed_for(hidden)


def test_a_repetition_gets_the_seed_of_what_it_repeats():
    source, seeds = SeedCounter(0, 0), []

    def layer(x):
        seeds.append(source.seed_for(x))
        return x.exp()

    inputs = [torch.ones(3, requires_grad=True) for _ in range(3)]
    outputs = [checkpoint(layer, x, use_reentrant=False) for x in inputs]
    torch.stack(outputs).sum().backward()
    assert len(seeds) == 6 and sorted(seeds[3:]) == sorted(seeds[:3]) and len(set(seeds)) == 3


def test_what_is_remembered_is_bounded():
    source = SeedCounter(0, 0)
    for size in range(1, 600):
        source.seed_for(torch.zeros(size))
    assert len(source._call_of) <= SeedCounter.REMEMBERED
