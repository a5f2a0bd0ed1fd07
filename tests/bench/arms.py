"""The arms of `bench_backward`: methods as the command line builds them, each on a copy of one dense encoder."""

import copy
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from keepfrac.run import identity
from keepfrac.storage.build import build
from keepfrac.training.finetune import Loop

CONF = Path(__file__).resolve().parents[2] / "conf"


@dataclass(frozen=True)
class Arm:
    """A method with settings.

    Args:
        config: its name in the table.
        method: a yaml of conf/method.
        keeps: the values of keep_frac at which it runs; 1.0 where it leaves nothing out.
        overrides: of the yaml, as on the command line.
        attention: sdpa | eager.
        noise: whether it stores dropout masks of the layers (a byte each on a GPU).
        exact: whether its gradients are dense's.
        shown: whether its gradients are those of the dense model's weights, so that they can be compared.
    """

    config: str
    method: str
    keeps: tuple[float, ...] = (1.0,)
    overrides: tuple[str, ...] = ()
    attention: str = "sdpa"
    noise: bool = True
    exact: bool = False
    shown: bool = True


DENSE = Arm("dense", "nosp", exact=True)


def _late(*more: str, config: str = "late", keeps: tuple[float, ...] = (0.3,)) -> Arm:
    return Arm(config, "late", keeps, tuple(f"method.{one}" for one in more), noise=False)


def groups(keep: tuple[float, ...]) -> dict[str, list[Arm]]:
    """Returns the arms by group, those that keep a share at each of `keep`."""
    few = tuple(k for k in keep if k < 1) or keep
    middle = (0.3,) if 0.3 in keep else few[:1]
    return {
        "baselines": [
            Arm("checkpoint", "checkpoint", noise=False, exact=True),
            Arm("recompute_gelu", "recompute_gelu", exact=True),
            Arm("backrazor, eager", "backrazor", middle, attention="eager"),
        ],
        "adapters": [
            *(Arm(name, name, shown=False) for name in ("lora", "peft_lora")),
            Arm("lora_sparse", "lora_sparse", middle, shown=False),
        ],
        "forward": [
            *(Arm(name, name, few) for name in ("norm", "rand", "bkrz")),
            *(Arm(name, name, middle) for name in ("norm_token", "rand_token", "wta")),
        ],
        "late": [
            _late(keeps=keep),
            _late("context=recompute", config="late, context recomputed", keeps=few),
            _late("rows=grad", config="late, rows=grad", keeps=middle),
        ],
        "fallback": [
            _late("kernels=torch", config="late, plain PyTorch, 8bit", keeps=middle),
            _late("kernels=torch", "store=mixed", config="late, plain PyTorch, mixed", keeps=middle),
        ],
    }


def padded(keep: tuple[float, ...]) -> list[Arm]:
    """The arms on a batch with padding."""
    few = tuple(k for k in keep if k < 1) or keep
    middle = (0.3,) if 0.3 in keep else few[:1]
    return [
        Arm("checkpoint", "checkpoint", noise=False, exact=True),
        _late(keeps=few),
        _late("context=recompute", config="late, context recomputed", keeps=middle),
        _late("skip_zero_rows=false", config="late, zero rows not skipped", keeps=few[-1:]),
    ]


def is_there(arm: Arm) -> bool:
    """Whether this version of the project has the method."""
    return (CONF / "method" / f"{arm.method}.yaml").exists()


class _NoTask:
    """What a method asks of a task before it trains."""

    head, labels, num_labels, batch_size, has_new_head = "sequence_classification", ("no", "yes"), 2, 1, True

    def metrics(self, split: str) -> None:
        return None


def settings_of(arm: Arm, keep_frac: float) -> dict:
    """Returns the resolved settings of the arm's method."""
    identity.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("config", [f"method={arm.method}", f"keep_frac={keep_frac}", *arm.overrides])
    return OmegaConf.to_container(cfg, resolve=True)["method"]


def built(arm: Arm, keep_frac: float, dense: nn.Module, dropout: bool = True, copied: bool = True):
    """Returns the method on a copy of `dense`, prepared to train; its `net` is what runs.

    Args:
        arm: what.
        keep_frac: its share.
        dense: a stock encoder.
        dropout: False: without.
        copied: False: `dense` itself is changed.
    """
    net = copy.deepcopy(dense) if copied else dense
    net.config._attn_implementation = arm.attention
    for module in net.modules() if not dropout else ():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    off = dict.fromkeys(("fgm", "ema", "r_drop", "layer_decay"))
    loop = Loop(lr=1e-4, weight_decay=0.0, warmup=0.0, clip=None, total_steps=1, **off)
    method = build(settings_of(arm, keep_frac), net=net, task=_NoTask(), loop=loop)
    method.net.train()
    method.prepare([])
    method.attach_saver()
    return method
