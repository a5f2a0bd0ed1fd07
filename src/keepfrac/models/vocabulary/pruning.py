"""Vocabulary pruning: a tokenizer and a model that know fewer tokens, and nothing else is different.

A text whose tokens all stay is divided as before, for each kind of fast tokenizer:

    WordPiece   takes the longest piece that it knows: with fewer pieces the same one, if it stays
    WordLevel   a word that stays is known, another is [UNK]
    BPE         does the first of its merges that applies, again and again: a merge stays if what it makes stays, and
                with it both of its parts, so every merge that a kept token is made by is there, in the old order
    Unigram     takes the division of highest score: the same one, if its pieces stay. The score of an unknown piece is
                counted from the lowest of all, so the piece of the lowest score stays too

What always stays: added and special tokens, the unknown token, the byte tokens of a tokenizer that falls back to bytes
or is made of them, and every id that the model's configuration names. A RoBERTa counts its positions from the id of
the padding token on: there all up to that id stay, so that it does not move.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from keepfrac.errors import UserError
from keepfrac.models.matching import position_offset
from keepfrac.models.reading import read_tokenizer

FILE = "tokenizer.json"
KINDS = ("WordPiece", "BPE", "Unigram", "WordLevel")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def state_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Returns the content of a fast tokenizer's tokenizer.json.

    Raises:
        UserError: it is not a fast one, or of a kind that is not known.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"a {type(tokenizer).__name__} has no tokenizer.json: its vocabulary cannot be pruned")
    state = json.loads(backend.to_str())
    if state["model"].get("type") not in KINDS:
        raise UserError(f"a {state['model'].get('type')} vocabulary cannot be pruned: known are {', '.join(KINDS)}")
    return state


def token_ids(state: Mapping[str, Any]) -> dict[str, int]:
    """Returns token -> id of all tokens, added ones included."""
    vocab = state["model"]["vocab"]
    pieces = {piece: i for i, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else dict(vocab)
    return pieces | {token["content"]: token["id"] for token in state["added_tokens"]}


def tokens_to_keep(state: Mapping[str, Any], used: Iterable[int], always: Iterable[int], characters: bool) -> list[int]:
    """Returns the ids of the tokens that stay, ascending: what is used, and what it takes to divide texts alike.

    Args:
        state: content of tokenizer.json.
        used: ids of the tokens that are to be kept.
        always: ids that the tokenizer or the model names as special.
        characters: whether single characters stay, alone and as continuation, that occur in the tokens kept so far:
            unseen words are then spelt, and not unknown.
    """
    ids = token_ids(state)
    token = {i: piece for piece, i in ids.items()}
    kept = {i for i in (*used, *always) if i in token}
    kept |= {added["id"] for added in state["added_tokens"]}
    kept |= {ids[piece] for piece in _structural(state) if piece in ids}
    if characters:
        prefix = state["model"].get("continuing_subword_prefix") or ""
        letters = {letter for i in kept for letter in token[i]}
        kept |= {ids[piece] for c in letters for piece in (c, prefix + c) if piece in ids}
    if state["model"]["type"] == "BPE":
        kept |= {ids[piece] for piece in _parts(state["model"], {token[i] for i in kept})}
    return sorted(kept)


def _structural(state: Mapping[str, Any]) -> list[str]:
    """Tokens that the kind of model needs, whatever the texts."""
    model = state["model"]
    found = [model["unk_token"]] if model.get("unk_token") else []
    if model["type"] == "Unigram":
        vocab = model["vocab"]
        found += [] if model["unk_id"] is None else [vocab[model["unk_id"]][0]]
        found.append(min(vocab, key=lambda entry: entry[1])[0])
    if model.get("byte_fallback"):
        found += BYTES
    if "ByteLevel" in {part["type"] for part in _nested(state["pre_tokenizer"], "pretokenizers")}:
        found += ByteLevel.alphabet()
    return found


def _nested(part: Any, name: str) -> list[dict]:
    """A step of a tokenizer, or the steps of a sequence of them."""
    if not part:
        return []
    return [step for inner in part[name] for step in _nested(inner, name)] if part["type"] == "Sequence" else [part]


def _pairs(model: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(left, right, what they make) of each merge, in order."""
    prefix = model.get("continuing_subword_prefix") or ""
    pairs = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    return [(left, right, left + right.removeprefix(prefix)) for left, right in pairs]


def _parts(model: Mapping[str, Any], wanted: set[str]) -> set[str]:
    """The tokens that the wanted ones are merged from, at every stage."""
    makers: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for left, right, made in _pairs(model):
        makers[made].append((left, right))
    found, open_ = set(wanted), list(wanted)
    while open_:
        parts = {part for pair in makers[open_.pop()] for part in pair} - found
        found |= parts
        open_ += parts
    return found & set(model["vocab"])


def remap_ids(state: Mapping[str, Any], kept: Sequence[int]) -> tuple[dict[str, Any], list[int]]:
    """Returns the tokenizer.json that knows these tokens alone, and the old id of each new one.

    Args:
        state: content of tokenizer.json.
        kept: ids of the tokens that stay (`tokens_to_keep`), ascending.
    """
    new = copy.deepcopy(dict(state))
    model, ids = new["model"], token_ids(state)
    inside = {entry[0] for entry in model["vocab"]} if isinstance(model["vocab"], list) else set(model["vocab"])
    piece = {i: token for token, i in ids.items()}
    # tokenizers gives added tokens ids after the model's own
    old = sorted(kept, key=lambda i: (piece[i] not in inside, i))
    now = {i: new for new, i in enumerate(old)}
    if isinstance(model["vocab"], list):
        model["vocab"] = [model["vocab"][i] for i in old if piece[i] in inside]
        model["unk_id"] = None if model["unk_id"] is None else now[model["unk_id"]]
    else:
        model["vocab"] = {piece[i]: now[i] for i in old if piece[i] in inside}
    if model["type"] == "BPE":
        merges = zip(model["merges"], _pairs(model), strict=True)
        model["merges"] = [merge for merge, pair in merges if all(part in model["vocab"] for part in pair)]
    for added in new["added_tokens"]:
        added["id"] = now[added["id"]]
    for step in _nested(new["post_processor"], "processors"):
        _remap_step(step, now)
    if new["padding"]:
        new["padding"]["pad_id"] = now.get(new["padding"]["pad_id"], 0)
    return new, old


def _remap_step(step: dict, now: Mapping[int, int]) -> None:
    for special in (step.get("special_tokens") or {}).values():
        special["ids"] = [now[i] for i in special["ids"]]
    for name in ("sep", "cls"):
        if name in step:
            step[name] = [step[name][0], now[step[name][1]]]


def rebuilt(tokenizer: PreTrainedTokenizerBase, state: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Returns a tokenizer like `tokenizer`, with another tokenizer.json, exactly as it will be loaded from a folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        for path in folder.iterdir():  # vocabularies in other forms would contradict it
            if path.name not in {FILE, "tokenizer_config.json", "chat_template.jinja"}:
                path.unlink()
        (folder / FILE).write_text(json.dumps(state, ensure_ascii=False), encoding="utf-8")
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        config.pop("added_tokens_decoder", None)  # by old ids; tokenizer.json has them
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        found = read_tokenizer(folder, "the smaller vocabulary")
    if len(found) != len(token_ids(state)):
        raise UserError(
            f"{type(tokenizer).__name__} builds tokens of its own ({len(found)}, not {len(token_ids(state))}): its"
            " vocabulary cannot be pruned"
        )
    return found


def special_token_ids(tokenizer: PreTrainedTokenizerBase, net: PreTrainedModel) -> set[int]:
    """Returns the ids that tokenizer and configuration name: padding, beginning, end and their like."""
    settings = [config.to_dict() for config in _configurations(net)]
    named = [value for one in settings for key, value in one.items() if key.endswith("_token_id")]
    flat = [i for value in named for i in (value if isinstance(value, list) else [value])]
    fixed = position_offset(net)
    below = set() if fixed is None else set(range(fixed + 1))
    return {*tokenizer.all_special_ids, *(i for i in flat if isinstance(i, int)), *below}


def _configurations(net: PreTrainedModel) -> list[Any]:
    found = [net.config, getattr(net, "generation_config", None)]
    return [config for config in found if config is not None]


@torch.no_grad()
def keep_rows(net: PreTrainedModel, old: Sequence[int]) -> dict[str, int]:
    """Leaves a model these rows of its word embeddings, and of its decoder where it has one, tied or not; in place.

    Args:
        net: the model; its configuration gets the new ids too, and `original_vocab_size`.
        old: the old id of each new token.

    Returns:
        Parameters of the word embeddings `before` and `after`, and `original_rows`, whatever cut it before.

    Raises:
        UserError: positions are counted from the id of the padding token, and that would be another one.
    """
    fixed = position_offset(net)
    if fixed is not None and list(old).index(fixed) != fixed:
        raise UserError(
            f"this {net.config.model_type} model counts positions from the id of its padding token, {fixed}, which"
            " its tokenizer would not keep: its vocabulary cannot be pruned"
        )
    words, decoder = net.get_input_embeddings(), net.get_output_embeddings()
    rows, size = torch.tensor(list(old)), words.weight.shape[0]
    tables = [words.weight, *(p for p in _decoder_parameters(net) if p.shape[:1] == (size,))]
    smaller = {
        id(table): nn.Parameter(table[rows.to(table.device)].clone(), requires_grad=table.requires_grad)
        for table in tables
    }
    for module in net.modules():  # by identity: what was tied stays tied
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in smaller:
                setattr(module, name, smaller[id(parameter)])
    now = {i: new for new, i in enumerate(old)}
    words.num_embeddings = len(old)
    words.padding_idx = None if words.padding_idx is None else now[words.padding_idx]
    if decoder is not None:
        decoder.out_features = len(old)
    _remap_configurations(net, now, size)
    width = words.embedding_dim
    return {"before": size * width, "after": len(old) * width, "original_rows": net.config.original_vocab_size}


def _decoder_parameters(net: PreTrainedModel) -> list[nn.Parameter]:
    """Returns those of the decoder, and of the module around it: a RoBERTa that is not tied has a second bias there."""
    decoder = net.get_output_embeddings()
    for module in net.modules():
        if decoder is not None and decoder in module.children():
            return [*decoder.parameters(), *module.parameters(recurse=False)]
    return []


def _remap_configurations(net: PreTrainedModel, now: Mapping[int, int], size: int) -> None:
    for config in _configurations(net):
        for key, value in config.to_dict().items():
            if key.endswith("_token_id") and value is not None:
                found = [now[i] for i in value] if isinstance(value, list) else now.get(value, value)
                setattr(config, key, found)
    net.config.original_vocab_size = getattr(net.config, "original_vocab_size", None) or size
    net.config.vocab_size = len(now)
