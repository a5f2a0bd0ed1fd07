"""`save` and `load`: a Hugging Face folder of a dense, cut, masked or packed model."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keepfrac.errors import UserError
from keepfrac.models import packed
from keepfrac.models.load import known_class
from keepfrac.models.reading import read_config, read_weights
from keepfrac.models.shrink import MaskedWeights
from keepfrac.prune.masks import Masks

FORMS = ("plain", "packed", "packed_int8")


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
    source, who = Path(folder), f"model {folder}"
    if not source.is_dir():
        raise UserError(f"{source} is not a model's folder: it has no config.json")
    config = read_config(source, who)
    if (source / packed.FILE).exists():
        return packed.load_packed(source)
    if (auto := known_class(config)) is None:
        raise UserError(f"{who}: its class {(config.architectures or ['(none is named)'])[0]} is not known here")
    net, info = read_weights(auto, source, who, config)
    if info["missing_keys"]:
        raise UserError(f"{who}: it has no weights for {', '.join(sorted(info['missing_keys'])[:3])}")
    return net.eval()
