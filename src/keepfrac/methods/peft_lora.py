"""LoRA by Hugging Face PEFT, the peer of `method=lora`: the same rank, alpha and linears, by its own layers.

V is drawn as PEFT does it (Kaiming, uniform). PEFT merges densely. Masks that came with the model hold whatever the
method, so its merged weights are masked again. A packed linear (GPT-2's c_attn) has one update over all its outputs.
Needs the package: pip install 'peft>=0.21,<0.22'.

keep_frac is 1: everything is kept.
"""

import warnings
from collections.abc import Iterable
from importlib.util import find_spec

from keepfrac.errors import UserError
from keepfrac.models.anatomy import head_of
from keepfrac.models.targets import targets_of
from keepfrac.prune.masks import Masks
from keepfrac.tensors.layouts import is_transposed
from keepfrac.tensors.surgery import find, replace
from keepfrac.training.adapter_tuning import LoraSettings, scores_of, trained
from keepfrac.training.finetune import Batch, FineTune


class PeftLora(FineTune):
    """Low-rank updates by PEFT."""

    class Settings(LoraSettings):
        """Those of low-rank updates alone."""

    settings: Settings

    replaces_backward = True

    def __init__(self, net, task, loop, settings: Settings):
        super().__init__(net, task, loop, settings)
        if find_spec("peft") is None:
            raise UserError("method=peft_lora needs the package peft: pip install 'peft>=0.21,<0.22'")
        self.paths: list[str] = []
        self.delivered_masks: Masks | None = None
        self.account: dict[str, float] = {}

    def prepare(self, batches: Iterable[Batch]) -> None:
        if self.paths:
            return
        from peft import LoraConfig, inject_adapter_in_model

        self.paths = list(dict.fromkeys(target.path for target in targets_of(self.net, self.settings.targets)))
        transposed = all(is_transposed(find(self.net, path)) for path in self.paths)
        config = LoraConfig(
            r=self.settings.rank,
            lora_alpha=self.settings.alpha,  # type: ignore[arg-type]  # it divides by the rank alone
            lora_dropout=self.settings.dropout,
            target_modules=self.paths,
            fan_in_fan_out=transposed,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's advice on models that it does not know
            inject_adapter_in_model(config, self.net)
        if self.settings.train_head and self.task.has_new_head:
            for path in head_of(self.net):
                find(self.net, path).requires_grad_(True)
        self._rename_masks()
        self.account = trained(self)

    def finish(self, batches: Iterable[Batch]) -> None:
        self.prepare(batches)
        self.account |= trained(self)
        scores = scores_of(self)
        for path in self.paths:
            layer = find(self.net, path)
            layer.merge()  # type: ignore[operator]
            replace(self.net, path, layer.get_base_layer())  # type: ignore[operator]
        self.masks = self.delivered_masks
        if self.masks is not None:
            self.masks.apply_to(self.net)
        self.account |= {f"unmerged_{name.replace('/', '_')}": value for name, value in scores.items()}

    def kept(self) -> dict:
        return {**super().kept(), **self.account}

    def _rename_masks(self) -> None:
        """PEFT's layers hold the weight one level deeper, under another name."""
        self.delivered_masks = self.masks
        if self.masks is not None:
            moved = {f"{path}.weight": f"{path}.base_layer.weight" for path in self.paths}
            self.masks = Masks({moved.get(name, name): mask.clone() for name, mask in self.masks.items()})
