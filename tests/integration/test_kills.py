"""SIGKILL at a random moment of each phase of a run: typed again, it leaves what the uninterrupted run leaves.

`make test-slow` kills `KEEPFRAC_KILLS` times, 100 unless it says otherwise, over six kinds of method.
"""

import os
import random

import pytest

from keepfrac.run.run import run
from tests import kill
from tests.contract.settings_of import KEEP, words
from tests.runs import check_same, results_of

KILLS = int(os.environ.get("KEEPFRAC_KILLS", "100"))
COMMON = ("steps=16", "eval_every=7", "checkpoint_every=3", "model.dropout=0.1", "probe_steps=0")
KINDS = {
    "plain": words("norm"),
    "gates": (*words("l0"), "backward=late"),
    "adapters": words("lora_sparse"),
    "distillation": (*words("distill_prune"), "distill=tinybert", "distill.teacher={teacher}"),
    "late": words("late"),
    "ema": (*words("nosp"), "ema=0.9", "r_drop=2.0"),
}


@pytest.fixture
def killing(composed, request, tmp_path):
    """Returns a function that kills the run of some words once for each phase in turn, and compares what it leaves."""

    def kill_(kind: str, *sequences: tuple[str, ...]) -> None:
        teacher = request.getfixturevalue("teacher") if kind == "distillation" else None
        chosen = [word.format(teacher=teacher) for word in KINDS[kind]]
        keep = KEEP.get(chosen[0].removeprefix("method="), 0.5)
        cells = [composed(*chosen, f"keep_frac={keep}", *COMMON, f"name=cell{n}") for n in range(len(sequences) + 1)]
        seconds = kill.whole_run(cells[0], tmp_path)
        for cfg, phases in zip(cells[1:], sequences, strict=True):
            for phase in phases:
                kill.killed_run(cfg, tmp_path, phase, random.uniform(0, seconds[phase]))
            if results_of(cfg)["status"] != "done":
                kill.whole_run(cfg, tmp_path)
            run(cfg)  # what a kill after the last word left goes now
            check_same(cells[0], cfg)
        assert not list((tmp_path / "temporary").iterdir())

    return kill_


def test_a_run_that_is_killed_in_its_phases_leaves_what_it_would_have(killing):
    killing("plain", ("evaluate", "report"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_kills_of_all_phases(killing, kind):
    random.seed(f"kills of {kind}")
    phases = [("fit", "finish", "save", "evaluate", last) for last in ("report", "run")]
    count = -(-KILLS // len(KINDS))
    rounds = [phases[number % 2] for number in range(-(-count // 5))]
    killing(kind, *rounds[:-1], rounds[-1][: count - 5 * (len(rounds) - 1)])
