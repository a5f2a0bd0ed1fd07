"""Step time and saved bytes of `lora` beside PEFT's LoRA of the same rank, and dense: forward and backward, in turn.

    make bench-lora     or     python -m pytest tests/bench/bench_lora.py -o python_files='bench_*.py' -o addopts= -s

All run in turn, round by round, in a new order each time, so that a busy moment hits all of them; the figure is the
median over the rounds of each one's time divided by peft's in the same round. Ranks, linears and S2 come from
conf/method/*.yaml. Environment: ROUNDS (9), LAYERS (2), ROWS (32), LENGTH (64), RANK, DEVICE (cpu), THREADS. On a busy
machine THREADS=1 tells more: it counts the processor's seconds instead of the clock's.
"""

import copy
import os
import random
import statistics
import time

import pytest
import torch
from hydra import compose, initialize_config_dir
from transformers import BertConfig, BertForSequenceClassification

from keepfrac.adapters.layer import scale_of
from keepfrac.adapters.selection import select_positions
from keepfrac.adapters.surgery import attach, freeze_but, part_of_weight, trainable
from keepfrac.measurement.costs import autocast, saved_bytes
from keepfrac.models.targets import targets_of

ROUNDS, LAYERS = int(os.environ.get("ROUNDS", "9")), int(os.environ.get("LAYERS", "2"))
ROWS, LENGTH = int(os.environ.get("ROWS", "32")), int(os.environ.get("LENGTH", "64"))
DEVICE = torch.device(os.environ.get("DEVICE", "cpu"))
THREADS = int(os.environ.get("THREADS", str(torch.get_num_threads())))
CLOCK = time.process_time if THREADS == 1 and DEVICE.type == "cpu" else time.perf_counter
SLOWER = 1.03  # what the medians of so few rounds may differ by of themselves


def settings(root) -> dict:
    with initialize_config_dir(str(root / "conf"), version_base="1.3"):
        chosen = dict(compose("config", ["method=lora_sparse"]).method)
    return chosen | {"rank": int(os.environ.get("RANK", chosen["rank"]))}


def nets(chosen: dict) -> dict:
    config = BertConfig(num_hidden_layers=LAYERS, vocab_size=1000)
    dense = BertForSequenceClassification(config).to(DEVICE).train()
    found = {"dense": dense, "peft": peft(copy.deepcopy(dense), chosen), "lora": copy.deepcopy(dense)}
    found["lora + S2"] = copy.deepcopy(dense)
    for name, sparse in (("lora", 0), ("lora + S2", chosen["sparse"])):
        ours(found[name], chosen, sparse)
    return found


def ours(net, chosen: dict, sparse: int) -> None:
    targets, scale = targets_of(net, chosen["targets"]), scale_of(chosen["alpha"], chosen["rank"])
    parts = {target: part_of_weight(net.get_submodule(target.path), target) for target in targets}
    draw = torch.Generator().manual_seed(0)
    positions = {t: select_positions(w, sparse, "random", chosen["rank"], draw) for t, w in parts.items()}
    attach(net, targets, chosen["rank"], scale, positions=positions)
    freeze_but(net, ["classifier"])


def peft(net, chosen: dict):
    from peft import LoraConfig, inject_adapter_in_model

    paths = [target.path for target in targets_of(net, chosen["targets"])]
    config = LoraConfig(r=chosen["rank"], lora_alpha=chosen["alpha"], target_modules=paths)
    inject_adapter_in_model(config, net)
    net.classifier.requires_grad_(True)
    return net


def sync() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_step_time(root, precision):
    pytest.importorskip("peft")
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    chosen = settings(root)
    found = nets(chosen)
    ids = torch.randint(5, 1000, (ROWS, LENGTH), device=DEVICE)
    labels = torch.randint(0, 2, (ROWS,), device=DEVICE)

    def loss(net):
        with autocast(DEVICE, precision):
            return net(input_ids=ids, labels=labels).loss

    def seconds(net) -> float:
        net.zero_grad(set_to_none=True)
        sync()
        begin = CLOCK()
        loss(net).backward()
        sync()
        return CLOCK() - begin

    saved = {name: saved_bytes(net, lambda net=net: loss(net)) for name, net in found.items()}  # and the warm-up
    order, ratios, alone = list(found), {name: [] for name in found}, []
    for _ in range(ROUNDS):
        random.shuffle(order)
        times = {name: seconds(found[name]) for name in order}
        alone.append(times["peft"])
        for name, value in times.items():
            ratios[name].append(value / times["peft"])
    middle = {name: statistics.median(values) for name, values in ratios.items()}
    print(f"\n{LAYERS} BERT-base layers, {ROWS} x {LENGTH} tokens, {precision}, rank {chosen['rank']}, {DEVICE},")
    print(f"{THREADS} threads, {ROUNDS} rounds in turn; peft {statistics.median(alone):.3f} s a step")
    print(f"{'':<12}{'step / peft':>12}{'saved MiB':>12}{'trained':>12}")
    for name, net in found.items():
        print(f"{name:<12}{middle[name]:>12.3f}{saved[name] / 2**20:>12.1f}{trainable(net):>12}")
    assert trainable(found["lora"]) == trainable(found["peft"])
    assert saved["lora"] <= saved["peft"] < saved["dense"]
    assert middle["lora"] <= SLOWER
