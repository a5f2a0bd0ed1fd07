"""The command line: normalises overrides, and turns errors into messages for users."""

import difflib
import os
import re
import traceback
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from hydra._internal.utils import get_args_parser
from hydra.errors import OverrideParseException

from keepfrac.errors import UnknownKey, UserError
from keepfrac.run.settings import RunSettings
from keepfrac.storage.foreign import own_line, told
from keepfrac.storage.headers import first_sentence
from keepfrac.storage.redact import redact

ROOT = Path(__file__).resolve().parents[3]
CONF = ROOT / "conf"
OTHER_NAMES = {
    "learning_rate": "lr",
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "steps",
    "max_epochs": "epochs",
    "train_batch_size": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "gradient_accumulation_steps": "accumulate",
    "accumulate_grad_batches": "accumulate",
    "warmup_ratio": "warmup",
    "max_grad_norm": "clip",
    "gradient_clip_val": "clip",
    "eval_steps": "eval_every",
    "save_steps": "checkpoint_every",
    "fp16": "hardware.precision",
    "bf16": "hardware.precision",
    "sparsity": "keep_frac",
    "model_name_or_path": "model.name",
}
"""What other programs call a key."""
COMPLETION = """_keepfrac() {
    local rest="${COMP_LINE#*-m src.main }"
    [ "$rest" = "$COMP_LINE" ] && return
    local choices="$(COMP_LINE="python src/main.py $rest" "${COMP_WORDS[0]}" -m src.main -sc query=bash 2>/dev/null)"
    COMPREPLY=($(compgen -W "$choices" -- "${COMP_WORDS[COMP_CWORD]}"))
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=}
complete -o nospace -o default -F _keepfrac python python3
"""
"""For bash: Hydra's own script knows `python file.py`, and not `python -m module`."""
WITHOUT_EFFECT = {
    "hydra.run": "a run's folder is multirun/<name>/<cell>: set name=",
    "hydra.sweep": "a sweep's folder is multirun/<name>: set name=",
    "hydra.output_subdir": "a run's settings stand in its config.yaml",
    "hydra.job.chdir": "a run stays where it is called",
}
"""Keys of Hydra that would have no effect, or take a run out of its place, and what to do."""


def arranged(words: Sequence[str]) -> list[str]:
    """Returns the words with options first, so that -m may stand anywhere, and with what `null` means.

    Raises:
        UserError: an unknown option, a setting without effect, a group without an option, or with several.
    """
    words = ["logger=none" if word == "logger=null" else word for word in words]
    for word in words:
        _refuse_without_effect(word)
        if match := re.fullmatch(r"(\w+)=(null|\[(.*)\]|)", word):
            _refuse_no_option(match[1], word, match[3])
    _refuse_without_teacher(words)
    is_override = [not word.startswith("-") and ("=" in word or word.startswith("~")) for word in words]
    options = [word for word, override in zip(words, is_override, strict=True) if not override]
    found = options + [word for word, override in zip(words, is_override, strict=True) if override]
    _check_options(found)
    return found


def _check_options(words: Sequence[str]) -> None:
    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; --help lists the keys, which are typed as key=value")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args([word for word in words if word != "--version"])


def _refuse_without_effect(word: str) -> None:
    if word.startswith("="):
        raise UserError(f"{word}: a key is needed before the =")
    key = word.lstrip("+~").partition("=")[0]
    if os.environ.get("KEEPFRAC_JOB"):  # the launcher gives a job its folder
        return
    for place, hint in WITHOUT_EFFECT.items():
        if key == place or key.startswith(f"{place}."):
            raise UserError(f"{word}: has no effect; {hint}")


def _refuse_without_teacher(words: Sequence[str]) -> None:
    """What an experiment, or a configuration of one's own, says of a teacher is not known here."""
    known = ("distill.teacher=", "+experiment=", "experiment=", "--config", "-c")
    idle = [word for word in words if word.startswith("distill.") and "=" in word]
    if idle and not any(word.startswith(known) for word in words):
        raise UserError(f"{idle[0]}: has no effect without a teacher; set distill.teacher=<a folder or a hub name>")


def _refuse_no_option(group: str, word: str, several: str | None) -> None:
    if not (CONF / group).is_dir() or (group == "experiment" and word == "experiment=null"):
        return
    if several:
        raise UserError(f"{word}: one run has one; a sweep over several is typed as -m {group}={several}")
    raise UserError(f"{word}: must be one of {', '.join(_options(group))}")


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def version() -> str:
    """Returns the version of this code."""
    file = ROOT / "pyproject.toml"  # what is installed may be another one
    if file.is_file() and (match := re.search(r'^version = "(.*)"', file.read_text(encoding="utf-8"), re.M)):
        return match[1]
    return metadata.version("keepfrac")


def described(group: str) -> str:
    """Returns a line for each option of a group: its name, and the first sentence of its yaml."""
    texts = {name: (CONF / group / f"{name}.yaml").read_text(encoding="utf-8") for name in _options(group)}
    width = max(map(len, texts))
    return "\n".join(f"{name:{width}}  {first_sentence(text)}" for name, text in texts.items()).replace("$", "$$")


def one_line(error: BaseException, typed: Sequence[str] = ()) -> str:
    """Returns what went wrong and what is allowed, in one line; `typed` are the words of the command."""
    if isinstance(error, OverrideParseException):
        key = error.override.partition("=")[0]
        return f"{error.override}: cannot be read; text with special signs goes in two pairs of quotes: {key}='\"...\"'"
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError):
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, UnknownKey):
        return _with_hint(cause, typed)
    if cause is not None:
        return " ".join(str(cause).split())
    text = str(error)
    if match := re.search(
        r"Could not find '([\w/]+)/([^']*)'\s+Available options in '[^']*':\s+(.*?)\s*Config search", text, re.S
    ):
        return _unknown_option(match[1], match[2], match[3].split())
    if match := re.search(r"Could not override '([\w./@]+)'", text):
        return unknown_key(match[1], typed)
    if match := re.search(r"Environment variable '(\w+)' not found.*full_key: ([\w.]+)", text, re.S):
        return f"{match[2]}: the environment variable {match[1]} is not set"
    if match := re.search(r"Interpolation key '([\w.]+)' not found.*full_key: ([\w.]+)", text, re.S):
        return f"{match[2]}=${{{match[1]}}}: there is no key {match[1]}"
    if match := re.search(r"unexpected keyword argument '(\w+)'.*full_key: ([\w.]+)", text, re.S):
        return f"{match[2]}.{match[1]}: no such key"
    if (reason := error.__cause__ or error.__context__) and text.startswith("Error merging override "):
        return f"{text.removeprefix('Error merging override ')}: {str(reason).splitlines()[0]}"
    if own := _own_cause(error):
        return redact(told(own))
    return " ".join(text.split())


def _with_hint(error: UnknownKey, typed: Sequence[str]) -> str:
    """Returns the message of the settings, or where the command line knows better its own."""
    known = "did you mean" in str(error) and error.key.rpartition(".")[2] not in OTHER_NAMES
    return str(error) if known else unknown_key(error.key, typed)


def _unknown_option(group: str, option: str, options: list[str]) -> str:
    near = difflib.get_close_matches(option, options, n=3)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{group}={option}: no such option; {hint}There are {len(options)}: {', '.join(options)}"


def unknown_key(key: str, typed: Sequence[str] = ()) -> str:
    """Returns the message for a key that does not exist, with the nearest ones.

    Args:
        key: the unknown key.
        typed: the words of the command: the keys of the options that it chooses go before those of their groups.
    """
    groups = [path.name for path in CONF.iterdir() if path.is_dir()]
    own = [*(name for name in RunSettings.names() if name not in groups), *groups]
    inner = {f"{group}.{name}" for group in groups for name in _keys(group)}
    group, _, last = key.rpartition(".")
    if last in OTHER_NAMES:
        near = [OTHER_NAMES[last]]
    elif group:
        option = next((word.partition("=")[2] for word in typed if word.startswith(f"{group}=")), "")
        near = _near(key, (f"{group}.{name}" for name in _option_keys(group, option)))
        near = near or _near(key, (name for name in inner if name.startswith(f"{group}.")))
    else:
        near = [name for name in sorted(inner) if name.endswith(f".{key}")] or _near(key, own)
    return f"{key}: no such key" + (f"; did you mean {' or '.join(near)}?" if near else "; --help lists the keys")


def _near(key: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(key, sorted(names), n=3)


def _option_keys(group: str, option: str) -> set[str]:
    """The keys of one option, and of the one that it starts from."""
    path = CONF / group / f"{option}.yaml"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    base = re.search(r"^defaults: *\[(\w+)", text, re.M)
    return set(re.findall(r"^(\w+):", text, re.M)) | (_option_keys(group, base[1]) if base else set())


def _keys(group: str) -> set[str]:
    files = [path.read_text(encoding="utf-8") for path in (CONF / group).glob("*.yaml")]
    return {key for text in files if "@package _global_" not in text for key in re.findall(r"^(\w+):", text, re.M)}


def foreign_error(error: BaseException) -> str:
    """Returns an unexpected error as a message: its type, its text and the line that it comes from.

    Of a user's own code that line is all there is to mend; a fault of this project can be shown whole.
    """
    if own_line(error):
        return redact(told(error))
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if frame.filename.startswith(str(ROOT / "src" / "keepfrac"))]
    where = f"{Path(ours[-1].filename).relative_to(ROOT)}:{ours[-1].lineno}; " if ours else ""
    return redact(f"{told(error)} ({where}HYDRA_FULL_ERROR=1 shows where)")


def _own_cause(error: BaseException) -> BaseException | None:
    """The first error of a user's own code that this one was raised for."""
    found, cause = None, error.__cause__ or error.__context__
    while cause is not None:
        found = cause if own_line(cause) else found
        cause = cause.__cause__ or cause.__context__
    return found
