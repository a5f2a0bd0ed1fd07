"""The settings of one run: the keys of conf/config.yaml, typed and checked.

What Hydra composed comes in as plain values and is an object from here on. Those of a method, task and the like stay
mappings: the class that `_target_` names has `Settings` of its own, which check them.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from keepfrac.distillation.recipe import recipe_of
from keepfrac.errors import UserError
from keepfrac.models.vocabulary.recipe import Vocabulary
from keepfrac.settings import Kind, Settings, choice, count, setting, settings, share, text, whole
from keepfrac.storage.build import build_target, check_settings
from keepfrac.storage.redact import redact
from keepfrac.training.loop import LoopSettings

NAME = Kind(
    lambda value: (
        isinstance(value, str)
        and bool(re.fullmatch(r"[\w.+-]{1,100}", value, re.ASCII))
        and value not in (".", "..", "records")
        and redact(value, environ={}) == value
    ),
    "letters, digits, . _ + - (not records, where multirun keeps its tables; no secret)",
)
SEED = Kind(lambda value: whole(0).holds(value) and value < 2**32, "a whole number in [0, 2^32)")
GROUP = Kind(lambda value: isinstance(value, Mapping) and "name" in value, "one of the group's options")
SENT = Kind(
    lambda value: isinstance(value, str) and bool(value) and redact(value, environ={}) == value,
    "a text that holds no secret",
)
TOKENIZER = Kind(
    lambda value: value is None or (isinstance(value, str) and bool(value)) or isinstance(value, Mapping),
    "a hub name, a folder, or a mapping that says how to make one, as model=bert_small has it",
)
CONFIG = Kind(
    lambda value: value is None or (isinstance(value, Mapping) and isinstance(value.get("model_type"), str)),
    "a mapping with model_type, as model=bert_tiny has it, or null",
)
SIZES = re.compile(r"(?!num_memory_blocks|type_vocab_size)(num_|n_|.*_size$|max_position_embeddings$|rank$)")
"""Names of a model's sizes, in the configurations of Transformers."""
EARLIER = (
    dict.fromkeys(("fgm", "ema", "r_drop", "layer_decay", "fidelity_every"))
    | {group: {"name": "none"} for group in ("backward", "distill", "augment", "export")}
    | {"rerun": "none"}
)
"""Settings that runs of earlier versions do not name, as they were in effect."""
EARLIER_MODEL = {"head": None}
"""The same of the `model` group."""


@settings
class Hardware(Settings):
    """The `hardware` group: where a run computes."""

    where: ClassVar[str] = "hardware"

    name: str = text("the group's option")
    accelerator: str = choice("what computes", "cpu", "gpu")
    devices: int = count("processes of the run, one a device", most=1024)
    strategy: str = choice("how several devices share the work", "auto", "ddp", "fsdp")
    precision: str = choice("auto: bf16-mixed where the device is fast in it", "auto", "32-true", "bf16-mixed")
    num_workers: int = count("processes that load data", 0, most=1024)
    threads: int | None = count("of the CPU, of each process; null: all that there are, divided", null=True, most=1024)

    @property
    def resolved_precision(self) -> str:
        """The precision that a run has: 32-true or bf16-mixed."""
        return resolved_precision(self.accelerator, self.precision)

    @property
    def device(self) -> str:
        """The accelerator by torch's name."""
        return "cuda" if self.accelerator == "gpu" else "cpu"


@settings
class Model(Settings):
    """The `model` group: what is fine-tuned."""

    where: ClassVar[str] = "model"

    name: str = text("a name on the hub, or a folder")
    package: str | None = text("its offline source; null: none", null=True)
    tokenizer: str | Mapping | None = setting(
        "a name on the hub, a folder, or how to make one; null: the model's own", TOKENIZER
    )
    config: Mapping | None = setting(
        "a model_type and its settings: random weights instead of loaded ones; null: loaded ones", CONFIG
    )
    run: str | None = text("a run's folder, whose model is taken; null: none", null=True)
    attention: str = choice("how attention is computed", "sdpa", "eager")
    hidden_act: str | None = text("the activation; null: as the model has it", null=True)
    dropout: float | None = share("of hidden states; null: as the model has it", "[)", null=True)
    attention_dropout: float | None = share("of attention probabilities; null: as the model has it", "[)", null=True)
    head: str | None = choice("new: a new classifier; null: the model's own, if it has one", "new", null=True)

    def check(self) -> None:
        if isinstance(self.tokenizer, Mapping):
            Vocabulary.of(self.tokenizer)
        for key, value in (self.config or {}).items():
            if SIZES.match(key) and value is not None and not whole(1).holds(value):
                raise UserError(f"model.config.{key}={value}: must be {whole(1).says}")


@settings
class Off(Settings):
    """A group of which nothing is chosen."""

    name: str = choice("the group's option", "none")


@settings
class NoAugmentation(Off):
    """`augment=none`."""

    where: ClassVar[str] = "augment"


@settings
class NoSaver(Off):
    """`backward=none`."""

    where: ClassVar[str] = "backward"


@settings
class NoTeacher(Off):
    """`distill=none`, also where a teacher is named."""

    where: ClassVar[str] = "distill"

    teacher: str | None = text("without effect", null=True)


@settings
class Logger(Settings):
    """The `logger` group but for W&B: where curves go, in addition to metrics.csv."""

    where: ClassVar[str] = "logger"

    name: str = choice("the group's option", "none", "csv", "tensorboard", "wandb")


@settings
class Wandb(Logger):
    """`logger=wandb`."""

    project: str = setting("the W&B project", SENT)
    entity: str | None = setting("the W&B user or team; null: the key's own", SENT, null=True)


@settings
class Export(Settings):
    """The `export` group: a further form of the delivered model."""

    where: ClassVar[str] = "export"

    name: str = choice(
        "the form", "none", "onnx", "peft", "sparse", "sparse_int8", "stock_padded", "stock_uniform", "torch_export"
    )


UNTARGETED: dict[str, type[Settings]] = {
    "augment": NoAugmentation,
    "backward": NoSaver,
    "distill": NoTeacher,
    "logger": Logger,
    "export": Export,
}
"""What the groups hold that name no class by `_target_`."""


@settings
class RunSettings(LoopSettings):
    """All settings of a run."""

    name: str = setting("folder of the sweep under multirun/, and the W&B group", NAME)
    seed: int = setting("of everything that is drawn", SEED)
    epochs: int = count("passes over the training rows; 0: evaluate only", 0)
    steps: int | None = count("optimizer steps; takes the place of epochs", null=True)
    batch_size: int = count("rows per optimizer step, over all devices and accumulated batches")
    eval_batch_size: int = count("most rows of an evaluation batch")
    accumulate: int = count("batches per optimizer step")
    eval_every: int | None = count(
        "optimizer steps between validations; null: after each epoch; the last step always has one", null=True
    )
    checkpoint_every: int = count("optimizer steps between resume checkpoints")
    keep_frac: float = share("of what: see the method's yaml", "(]")
    probe_steps: int = count("steps of the cost measurement per side; 0: no measurement", 0)
    rerun: str = choice("of finished cells: none, or those that other code has made (changed)", "none", "changed")
    fidelity_every: int | None = count("optimizer steps between looks at the dense gradient; null: none", null=True)
    model: Model = setting("what is fine-tuned", Kind(lambda value: isinstance(value, Model), "a model"))
    hardware: Hardware = setting("where", Kind(lambda value: isinstance(value, Hardware), "hardware"))
    method: dict = setting("what is trained, and how", GROUP)
    task: dict = setting("what is learnt, and what judges it", GROUP)
    backward: dict = setting("what is saved for the backward pass", GROUP)
    distill: dict = setting("a teacher", GROUP)
    augment: dict = setting("more training rows", GROUP)
    logger: dict = setting("where curves go, in addition to metrics.csv", GROUP)
    export: dict = setting("another form of the delivered model", GROUP)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        given = {**EARLIER, **given}
        for key in ("model", "hardware"):
            if not isinstance(given.get(key), Mapping):
                raise UserError(f"{key}={given.get(key)}: must be {GROUP.says}")
        model = Model.of({**EARLIER_MODEL, **given["model"]})
        return super().of({**given, "model": model, "hardware": Hardware.of(given["hardware"])})

    @property
    def rows(self) -> int:
        """Rows of one process in one accumulated batch."""
        return self.batch_size // (self.accumulate * self.hardware.devices)

    def check(self) -> None:
        if self.batch_size % (self.accumulate * self.hardware.devices):
            raise self.error(
                "batch_size",
                f"over all devices, it must be a multiple of accumulate={self.accumulate} x"
                f" hardware.devices={self.hardware.devices}",
            )
        for key in ("fgm", "ema"):
            if getattr(self, key) is not None and self.hardware.strategy == "fsdp":
                raise self.error(key, "must be null where a strategy shards the weights (fsdp)")
        if self.export["name"] == "peft":
            _check_peft(self.method, self.model.run)
        self._check_groups()

    def _check_groups(self) -> None:
        for group in ("method", "task", *UNTARGETED):
            given = getattr(self, group)
            if group in UNTARGETED and "_target_" not in given:
                _check_untargeted(group, given)
            else:
                check_settings(group, given)
        self._check_saver()

    def _check_saver(self) -> None:
        """Refuses, before training, what saves for the backward pass beside what cannot be beside it."""
        method = build_target(self.method["_target_"])
        if "_target_" in self.backward and getattr(method, "replaces_backward", False):
            raise UserError(
                f"backward={self.backward['name']} beside method={self.method['name']}, which brings layers with a"
                " backward pass of their own: leave one of the two out"
            )
        saver = build_target(self.backward["_target_"] if "_target_" in self.backward else self.method["_target_"])
        forms_scores = getattr(getattr(saver, "saver_class", saver), "forms_attention_scores", True)
        recipe = recipe_of(self.distill)
        if recipe and recipe.w_att and not forms_scores:
            raise UserError(
                f"distill.w_att={recipe.w_att}: late forms no attention scores to distil from: set distill.w_att=0, or"
                " choose distill=hidden or distill=logits"
            )


def _check_untargeted(group: str, given: Mapping) -> None:
    own = Wandb if group == "logger" and given["name"] == "wandb" else UNTARGETED[group]
    own.of({"teacher": None, **given} if group == "distill" else given)  # which earlier versions did not write


def _check_peft(method: Mapping, run: str | None) -> None:
    """Refuses export=peft, before training, where the delivered model will have no updates."""
    if method.get("merge", "keep") != "keep":
        raise UserError("export=peft needs method.merge=keep: merged updates cannot be taken out again")
    if "merge" not in method and not run:
        raise UserError(
            f"export=peft: method={method.get('name')} delivers no updates of its own; take method=lora"
            " method.merge=keep, or a model of a run that has them (model=from_run)"
        )


def plain(cfg: DictConfig) -> dict:
    """Returns the resolved configuration as plain containers, without Hydra's own part.

    Raises:
        UserError: a mandatory value is missing.
    """
    try:
        return {str(key): _contents(cfg, key) for key in cfg if key != "hydra"}
    except MissingMandatoryValue as error:
        raise UserError(
            f"{error.full_key}: a value is needed, such as {error.full_key}=multirun/<name>/<cell>"
        ) from error


def _contents(cfg: DictConfig, key: Any) -> Any:
    value = cfg[key]
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value


def check(cfg: DictConfig | dict) -> RunSettings:
    """Returns the settings of a configuration.

    Raises:
        UserError: names the key, its value and what is allowed.
    """
    return RunSettings.of(cfg if isinstance(cfg, dict) else plain(cfg))


@functools.cache
def resolved_precision(accelerator: str, precision: str) -> str:
    """Returns the precision that a run will have: `auto` is bf16-mixed where the hardware multiplies bf16."""
    if precision != "auto":
        return precision
    import torch

    if accelerator == "gpu":
        return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"
    return "bf16-mixed" if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_fast_bf16() else "32-true"


def _has_fast_bf16() -> bool:
    # oneDNN also calls bf16 supported where it emulates it, which is slower than fp32
    try:
        return bool({"avx512_bf16", "amx_bf16"} & set(Path("/proc/cpuinfo").read_text().split()))
    except OSError:
        return False
