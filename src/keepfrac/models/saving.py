"""`save` and `load`: a Hugging Face folder of a dense, cut, masked or packed model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from keepfrac.adapters.files import attach_saved
from keepfrac.errors import UserError
from keepfrac.models import packed
from keepfrac.models.pruned import ENCODERS
from keepfrac.models.shrink import MaskedWeights
from keepfrac.prune.masks import Masks
from keepfrac.storage.redact import first_line

FORMS = ("plain", "packed", "packed_int8")
AUTOS = (*ENCODERS, AutoModelForCausalLM)


def save(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    masks: MaskedWeights | Masks | None = None,
    form: str = "plain",
) -> Path:
    """Writes a model's folder.

    A cut model's folder holds the code of its class, so that `AutoModel*.from_pretrained(folder,
    trust_remote_code=True)` loads it where this package is not installed. Restore what saves less before; updates are
    written beside the weights.

    Args:
        model: dense, cut or masked, with any head.
        folder: is made; what lies in it under the same names is replaced.
        tokenizer: written too; None: the folder has none.
        masks: of the weights that are zero, so that a further training can hold them.
        form: plain; packed, one bit a weight and the values that are not zero, exactly; packed_int8, with 8-bit values.

    Returns:
        The folder.

    Raises:
        UserError: an unknown form, a packed one that would not be smaller, or a folder that cannot be written.
    """
    if form not in FORMS:
        raise UserError(f"form={form}: must be one of {', '.join(FORMS)}")
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if form == "plain":
            model.save_pretrained(target)
        else:
            packed.save_packed(model, target, int8=form == "packed_int8")
        if tokenizer is not None:
            tokenizer.save_pretrained(target)
        if masks is not None:
            (masks.masks if isinstance(masks, MaskedWeights) else masks).save(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error}") from error
    return target


def load(folder: str | Path) -> PreTrainedModel:
    """Returns the model of a folder with the head that its configuration names, in eval mode.

    Zeros of a masked model are plain zeros; `Masks.load(folder)` of `keepfrac.prune.masks` gives the masks.

    Args:
        folder: of `save`, of a run (its `model`), or any of Transformers.

    Raises:
        UserError: it is no model's folder, cannot be read, or names a head that this package does not know.
    """
    source = Path(folder)
    if not (source / "config.json").is_file():
        raise UserError(f"{source} is not a model's folder: it has no config.json")
    if (source / packed.FILE).exists():
        return packed.load_packed(source)
    try:
        config = AutoConfig.from_pretrained(source)
        net, info = _auto_class(config, source).from_pretrained(source, config=config, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise UserError(f"model {source}: {first_line(error)}") from error
    if info["missing_keys"]:
        raise UserError(f"model {source}: it has no weights for {', '.join(sorted(info['missing_keys'])[:3])}")
    attach_saved(net, source)
    return net.eval()


def _auto_class(config: PreTrainedConfig, source: Path) -> Any:
    """The Auto class whose model of this family is the one that the configuration names."""
    wanted, family = (config.architectures or [""])[0], type(config)
    for auto in AUTOS:
        found = auto._model_mapping.get(family, ())
        if wanted in {cls.__name__ for cls in (found if isinstance(found, tuple | list) else (found,))}:
            return auto
    raise UserError(f"model {source}: its class {wanted or '(none is named)'} is not known here")
