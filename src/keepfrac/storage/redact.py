"""What must never be written down: secrets, taken out of any text before it is logged, recorded or shown.

Nothing heavy, because everything that writes text imports it.
"""

import functools
import logging
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

MASK = "***"
_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL", re.IGNORECASE)
_SURE_NAMES = re.compile(r"(?:TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY)$", re.IGNORECASE)
_SHORTEST = 8  # shorter values ("1", "false" of TOKENIZERS_PARALLELISM) would mask ordinary words
_SHORTEST_SURE = 4  # of a name that means nothing else, as a word by itself
# not \b: a secret may follow an underscore, as in the name of a run's folder
_SHAPES = tuple(
    re.compile(rf"(?<![0-9A-Za-z]){shape}")
    for shape in (
        r"[0-9a-fA-F]{40}(?![0-9A-Za-z])",
        r"local-[0-9A-Za-z_-]{20,}",
        r"hf_(?=[0-9A-Za-z]*[0-9A-Z])[0-9A-Za-z]{8,}",
        r"wandb_v\d+_[0-9A-Za-z_-]{20,}",
        r"sk-[0-9A-Za-z_-]{20,}",
        r"gh[pousr]_[0-9A-Za-z]{16,}",
        r"github_pat_[0-9A-Za-z_]{20,}",
        r"glpat-[0-9A-Za-z_-]{16,}",
        r"xox[abprs]-[0-9A-Za-z-]{10,}",
        r"A[KS]IA[0-9A-Z]{16}(?![0-9A-Za-z])",
    )
)
# pad_token, max_tokens and unit=token are ordinary: a bare "token" is a whole name, and no value
_SECRET = (
    r"(?:(?:api|access|auth|secret|private|hf|hub|github|gh|wandb|bearer|refresh|session)[_-]?(?:key|token)"
    r"|password|passwd|passphrase|credentials?|secret|(?<![\w=])(?<!\w-)token|(?-i:[A-Z0-9]_TOKEN))"
)
_VALUE = r"(?:(\\?[\"'])[^\n]*?\3|[\"']?[^\s,;}\]'\"]+)"  # \3: the quote it ends with
_ASSIGNED = re.compile(rf"({_SECRET})(\\?[\"']?\s*[=:]\s*){_VALUE}", re.IGNORECASE)
_OPTION = re.compile(rf"(--[\w.-]*?{_SECRET})(\s+)(?!-){_VALUE}", re.IGNORECASE)
_OPTION_NAME = re.compile(rf"--[\w.-]*?{_SECRET}", re.IGNORECASE)
_KEY = re.compile(rf"{_SECRET}$", re.IGNORECASE)
_HEADER = re.compile(
    r"(authorization\\?[\"']?\s*[=:]\s*\\?[\"']?(?:(?:bearer|basic|token)\s+)?)[^\s,;}\]'\"\\]+", re.IGNORECASE
)
_BEARER = re.compile(r"(\bbearer\s+)[\w.~+/=-]{8,}", re.IGNORECASE)
_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)
_ABSOLUTE = re.compile(r"(?<![\w.~/:*-])/(?:[^\s'\",:/]+/)+([^\s'\",:/]*)")


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Replaces secrets in a text by ``***``.

    Secrets are: the values (8 characters or more) of environment variables whose name holds KEY, TOKEN, SECRET,
    PASSWORD or CREDENTIAL, and as words by themselves those from 4 characters on where the name ends so; 40
    hexadecimal digits; ``local-`` with 20 or more characters; ``hf_...``, ``ghp_...``, ``AKIA...``, ``sk-...`` and the
    like; W&B keys; what is assigned to api_key, password, credential, token and the like, quoted or not, or follows
    them as an option (``--password x``); what stands in an Authorization header or after Bearer; user and password in
    an address. A git commit has 40 hexadecimal digits too: do not pass it through here.

    Args:
        text: anything printable.
        environ: the environment that is searched for secrets; that of the process when None.
    """
    text = str(text)
    environ = os.environ if environ is None else environ
    for secret in _secrets(environ):
        text = text.replace(secret, MASK)
    for secret in _short_secrets(environ):
        text = re.sub(rf"(?<![\w/.-]){re.escape(secret)}(?![\w/-])", MASK, text)
    for shape in _SHAPES:
        text = shape.sub(MASK, text)
    text = _IN_URL.sub(rf"\g<1>{MASK}@", text)
    text = _BEARER.sub(rf"\g<1>{MASK}", _HEADER.sub(rf"\g<1>{MASK}", text))
    for named in (_ASSIGNED, _OPTION):
        text = named.sub(rf"\g<1>\g<2>\g<3>{MASK}\g<3>", text)
    return text


def redact_all(texts: Iterable[str]) -> list[str]:
    """Applies `redact` to each of several texts (an argv), where a secret may also follow the option that names it."""
    texts = list(texts)
    return [
        MASK if _OPTION_NAME.fullmatch(before) and not text.startswith("-") else redact(text)
        for before, text in zip(["", *texts], texts, strict=False)
    ]


def redact_tree(value: Any) -> Any:
    """Applies `redact` to every string in nested dicts and lists; one under a secret's name (api_key) goes whole."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {
            key: MASK if part and isinstance(part, str) and _KEY.search(str(key)) else redact_tree(part)
            for key, part in value.items()
        }
    return [redact_tree(part) for part in value] if isinstance(value, list | tuple) else value


def hide_paths(text: str) -> str:
    """Shortens absolute paths to their last part (``/home/me/glue_data`` -> ``.../glue_data``)."""
    return _ABSOLUTE.sub(r".../\1", str(text))


def _secrets(environ: Mapping[str, str]) -> list[str]:
    """The secret values of an environment, longest first so that one within another leaves no rest."""
    values = {
        value
        for name, value in environ.items()
        if _NAMES.search(name) and len(value) >= _SHORTEST and not _is_path(value)
    }
    return sorted(values, key=len, reverse=True)


@functools.cache
def _is_path(value: str) -> bool:
    """Whether a value names a file or a folder: where a key lies is no secret, and lines name folders."""
    return value.startswith("/") and Path(value).exists()


def _short_secrets(environ: Mapping[str, str]) -> list[str]:
    """Those too short to be masked within a word, or within a path."""
    sure = (value for name, value in environ.items() if _SURE_NAMES.search(name))
    return [value for value in sure if _SHORTEST_SURE <= len(value) < _SHORTEST]


def redact_line(text: object) -> str:
    """Returns a text redacted, as one line."""
    return redact(" ".join(str(text).split()))


def redact_yaml(path: Path) -> None:
    """Takes the secrets out of a YAML file; its keys, its interpolations and its order stay.

    Raises:
        OSError: it cannot be read or written.
    """
    import yaml

    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if (clean := redact_tree(found)) != found:
        path.write_text(yaml.safe_dump(clean, sort_keys=False, allow_unicode=True), encoding="utf-8")


class Redacting(logging.Filter):
    """Lets every log record pass, without secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if (clean := redact(message)) != message:
            record.msg, record.args = clean, ()
        return True


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's text that is not empty, redacted; of one without a text its name."""
    return next((line.strip() for line in redact(str(error)).splitlines() if line.strip()), type(error).__name__)
