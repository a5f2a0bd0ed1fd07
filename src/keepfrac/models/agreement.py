"""Whether a model's configuration agrees with its weights, and with what it is trained as; else one line says what."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from keepfrac.errors import UserError
from keepfrac.models.families import FAMILIES, PRUNED, Family


def refuse_decoder(config: Any) -> None:
    """Refuses an encoder whose tokens see only what stands before them.

    Raises:
        UserError: a known encoder whose configuration has is_decoder=true.
    """
    row = _row(config)
    if row is not None and not row.causal and getattr(config, "is_decoder", False):
        raise UserError(
            f"a {config.model_type} is trained as an encoder, and this one is set up as a decoder: set is_decoder to"
            " false in its config.json"
        )


def new_weights(source: str, config: Any, info: Mapping[str, Any]) -> list[str]:
    """Returns the names of the weights that are new, the head's and the pooler's, in order.

    Args:
        source: the model's folder or name, for the message.
        config: of the model.
        info: what `from_pretrained` says of its loading, with mismatched sizes ignored.

    Raises:
        UserError: other weights are missing, or have another shape than the configuration says; or the weights are of
            more layers than it says.
    """
    shapes = {key[0]: f" {tuple(key[1])}, not {tuple(key[2])}" for key in info.get("mismatched_keys", ())}
    new, parts = sorted({*info["missing_keys"], *shapes}), _new_parts(config)
    wrong = [f"{key}{shapes.get(key, '')}" for key in new if not set(key.split(".")) & parts]
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        raise UserError(
            f"model {source}: these weights are missing or have another shape than config.json says: {shown}"
        )
    _refuse_more_layers(source, config, info.get("unexpected_keys", ()))
    return new


def _row(config: Any) -> Family | None:
    return FAMILIES.get(config.model_type.removeprefix(PRUNED))


def _new_parts(config: Any) -> set[str]:
    """A task brings its own head, and an encoder its pooler; of an unknown family all that are known count.

    A head for questions is called alike in all families.
    """
    row = _row(config)
    return {"qa_outputs"} | {part for family in ([row] if row else FAMILIES.values()) for part in family.new_parts}


def _refuse_more_layers(source: str, config: Any, unexpected: Iterable[str]) -> None:
    if (row := _row(config)) is None:
        return
    layer = re.compile(rf"(?:^|\.){re.escape(row.layers)}\.(\d+)\.")
    highest = max((int(found[1]) for key in unexpected if (found := layer.search(key))), default=-1)
    if highest >= (depth := getattr(config, row.depth)):
        raise UserError(
            f"model {source}: its weights are of {highest + 1} layers, and config.json says {row.depth}={depth}"
        )
