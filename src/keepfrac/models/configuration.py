"""The configuration of a model with random weights, from `model.config`."""

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from keepfrac.errors import UserError


def configuration(given: Mapping[str, Any]) -> PreTrainedConfig:
    """Returns the configuration that `model.config` describes: `model_type`, and settings of that family.

    Raises:
        UserError: Transformers has no such family, the family no such setting, or a value is not allowed.
    """
    _known("model_type", given["model_type"], sorted(CONFIG_MAPPING))
    family = CONFIG_MAPPING[given["model_type"]]
    names = sorted({one.name for one in fields(family)} | set(family.attribute_map) | {"num_labels"})
    for key in given.keys() - {"model_type"}:
        _known(key, None, names)
    try:
        made = AutoConfig.for_model(**given)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise UserError(f"model.config: {' '.join(str(error).split())}") from error
    width, heads = (getattr(made, key, None) for key in ("hidden_size", "num_attention_heads"))
    if width and heads and not getattr(made, "head_dim", None) and width % heads:
        raise UserError(f"model.config: hidden_size={width} must be a multiple of num_attention_heads={heads}")
    return made


def _known(key: str, value: str | None, names: list[str]) -> None:
    name = key if value is None else value
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UserError(
        f"model.config.{key}: a model of this family has no such setting{hint}"
        if value is None
        else f"model.config.{key}={value}: Transformers has no such family{hint}"
    )
