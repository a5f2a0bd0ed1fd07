"""The laws that every method keeps, each written once over conf/method: a new yaml is held to them without an edit.

Killed and resumed is uninterrupted, two processes are one, everything kept is dense, what is achieved is what was
asked, what is done is not done again, and a setting that cannot be is refused before training. The first two take
seconds a method: presets, whose yaml begins with another method's, are in the slow set.
"""

import contextlib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from fnmatch import fnmatch
from multiprocessing import get_context

import pytest

from keepfrac.run.run import run
from tests.contract.settings_of import KEEP, METHODS, is_preset, matching, words
from tests.runs import check_close, check_resumes, folder_of

STEPS = ("steps=16", "eval_every=7", "probe_steps=0")  # of twelve an epoch
STILL = ("model.dropout=0", "model.attention_dropout=0")  # each process has a dropout of its own
OPTIONS = ("fgm=0.5", "ema=0.9", "layer_decay=0.7")
ARMS = {  # beside each method as it is: what else must survive a kill
    "options": (*words("norm"), *OPTIONS, "r_drop=2.0"),
    "l0+late": (*words("l0"), "backward=late"),
    "l0+anti_windup": (*words("l0"), "method.anti_windup=true", "method.gate_lr=2", "method.multiplier_lr=2"),
    "lora_sparse+late": (*words("lora_sparse"), "backward=late"),
    "lora_sparse+cubic": (
        *words("lora_sparse"),
        "method.schedule=cubic",
        "method.merge=sparse_by_construction",
        "method.settled_at=0.8",
    ),
    "late+budget": (*words("late"), "method.budget=0.3"),
    "wta+gradient_norms": (*words("wta"), "method.gradient_norms=true"),
    "taylor+logits": (*words("taylor"), "method.importance_from=logits"),
    "distill_prune+teacher": (
        *words("distill_prune"),
        "method.score=fisher",
        "method.scope=global",
        "distill=tinybert",
        "distill.teacher={teacher}",
    ),
    "sparsebert+teacher": (*words("sparsebert"), "distill.teacher={teacher}"),
}
ARMS_OF_TWO = {
    "options": (*words("nosp"), *OPTIONS),
    "lora_sparse+cubic": ARMS["lora_sparse+cubic"],
    "distill_prune+teacher": (
        *words("distill_prune"),
        "method.score=movement",
        "distill=tinybert",
        "distill.teacher={teacher}",
    ),
}
ALONE = ("norm*", "rand_token", "late", "wta", "peft_lora")
"""What two processes do alike but not equally: they choose among the rows that each of them sees, or draw at random."""
OF_TWO = {"l0_factorized": ("method.whiten=0",)}  # it counts batches, and those of two processes are half as large
DECODERS = {  # name: model and what it is trained by
    "gpt2_tiny": ("gpt2_tiny", (*words("nosp"), "model.dropout=0.1")),
    "llama_tiny": ("llama_tiny", words("nosp")),
    "gpt2_tiny+lora": ("gpt2_tiny", words("lora")),
    "llama_tiny+taylor": ("llama_tiny", words("taylor")),
    "llama_tiny+l0+late": ("llama_tiny", (*words("l0"), "backward=late")),
}


GRANULARITY = {  # by pattern of the method's name: how far below and above what is asked it may end
    "late": (0.2, 0),  # rows of padding are left out for nothing
    "vocab": (0, 1),  # what the texts have stays
    "sparsebert": (0.001, 0.001),
    "dsee_25_25": (0, 0.11),  # whole heads, of two
    "l0*": (0.05, 0),
    "*": (0.01, 0.001),
}
DENSE = {  # by pattern: how exactly a run that keeps everything is dense fine-tuning; None: it is another training
    **dict.fromkeys(("*lora*", "dsee*", "sparsebert", "vocab", "late", "wta"), None),
    **dict.fromkeys(("norm*", "rand", "rand_token", "bkrz", "backrazor"), 1e-4),
    "*": 0,
}


def each(arms: dict) -> list:
    """The words of each method, those of presets marked slow, and of each arm."""
    slow = {name: (pytest.mark.slow,) for name in METHODS if is_preset(name) and name != "l0_factorized"}
    methods = [pytest.param(words(name), id=name, marks=slow.get(name, ())) for name in METHODS]
    return methods + [pytest.param(chosen, id=name) for name, chosen in arms.items()]


@pytest.fixture
def law(shared, teacher):
    """Returns a function from a method's words to the configuration of its run."""

    def compose_(chosen, *more: str):
        keep = KEEP.get(chosen[0].removeprefix("method="), 0.5)
        return shared(f"keep_frac={keep}", *STEPS, *(word.format(teacher=teacher) for word in chosen), *more)

    return compose_


@pytest.mark.parametrize("chosen", each(ARMS))
def test_killed_and_resumed_is_uninterrupted(law, composed, chosen):
    """Killed twice: before gates are on or units chosen, and in the second epoch, settled."""
    whole, broken = (law(chosen, "checkpoint_every=3", "model.dropout=0.1", f"name={n}") for n in ("whole", "broken"))
    check_resumes(whole, broken, 4, 14)


@pytest.mark.parametrize("name", DECODERS)
def test_a_killed_decoder_goes_on(e2e, name):
    model, chosen = DECODERS[name]
    common = (*chosen, "keep_frac=0.5", "checkpoint_every=2", "steps=7", "eval_every=3")
    whole, broken = (e2e(*common, f"name={n}", model=model) for n in ("whole", "broken"))
    check_resumes(whole, broken, 2, 5)
    said = [(folder_of(cfg) / "examples.json").read_text() for cfg in (whole, broken)]
    assert said[0] == said[1]


@pytest.fixture(scope="module")
def follower():
    """One second process for all runs: its start is their longest part, and integration/test_ddp.py tests it."""

    @contextlib.contextmanager
    def followers(place, work, *arguments):
        following = pool.submit(work, *arguments, replace(place, rank=1)) if place.world_size == 2 else None
        yield
        if following is not None:
            following.result(timeout=60)

    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool, pytest.MonkeyPatch.context() as patch:
        patch.setattr("keepfrac.training.distributed.spawn_workers", followers)
        yield


@pytest.mark.parametrize("chosen", each(ARMS_OF_TWO))
def test_two_processes_are_one(law, follower, chosen):
    name = chosen[0].removeprefix("method=")
    common = (*STILL, "steps=8", "eval_every=4", "accumulate=2", *OF_TWO.get(name, ()))
    one, two = law(chosen, *common, "name=one"), law(chosen, *common, "hardware=cpus", "name=two")
    own = [run(cfg)["kept"]["achieved"] for cfg in (one, two)]
    if any(fnmatch(name, pattern) for pattern in ALONE):
        assert own[1] == pytest.approx(own[0], abs=0.05)
    else:
        assert own[1] == pytest.approx(own[0], abs=1e-4)
        check_close(one, two, 1e-5)


def test_two_processes_are_one_over_tokens(masked, follower):
    """Each has half of the rows, but not half of the tokens that the loss is a mean over."""
    common = ("method=nosp", *STILL, "steps=4", "batch_size=8", "accumulate=2", "lr=1e-3")
    one, two = masked(*common, "name=one"), masked(*common, "hardware=cpus", "name=two")
    run(one), run(two)
    check_close(one, two, 1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_achieved_is_asked_and_what_is_done_is_not_done_again(law, monkeypatch, name):
    cfg = law(words(name))
    first = run(cfg)
    kept, (below, above) = first["kept"], matching(GRANULARITY, name)
    assert kept["asked"] - below <= kept["achieved"] <= kept["asked"] + above
    monkeypatch.setattr("keepfrac.run.run._execute", lambda *_: pytest.fail("ran again"))
    assert run(cfg)["scores"] == first["scores"]


@pytest.mark.parametrize("name", [name for name in METHODS if matching(DENSE, name) is not None])
def test_everything_kept_is_dense(law, name):
    dense, own = law(words("nosp"), "steps=6"), law(words(name), "keep_frac=1", "steps=6")
    run(dense)
    assert run(own)["kept"]["achieved"] == 1
    check_close(dense, own, matching(DENSE, name))
