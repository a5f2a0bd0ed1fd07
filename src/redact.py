"""What must never be written down: secrets, taken out of any text before it is logged, recorded or shown.

Standard library only, because everything that writes text imports it.
"""

import os
import re
from collections.abc import Iterable, Mapping

MASK = "***"
_NAMES = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
_SHORTEST = 8  # shorter values ("1", "false" of TOKENIZERS_PARALLELISM) would mask ordinary words
_SHAPES = (
    re.compile(r"(?<![0-9A-Za-z])[0-9a-fA-F]{40}(?![0-9A-Za-z])"),
    re.compile(r"\blocal-[0-9A-Za-z_-]{20,}"),
    re.compile(r"\bhf_[0-9A-Za-z]{8,}"),
    re.compile(r"\bwandb_v\d+_[0-9A-Za-z_-]{20,}"),
)
_ASSIGNED = re.compile(
    r"((?:api|access|auth|secret)[_-]?(?:key|token)|password|passwd|secret)(\s*[=:]\s*)[^\s,;}\]'\"]+",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)
_ABSOLUTE = re.compile(r"(?<![\w.~/:*-])/(?:[^\s'\",:/]+/)+([^\s'\",:/]*)")


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Replaces secrets in a text by ``***``.

    Secrets are: the values (8 characters or more) of environment variables whose name holds KEY, TOKEN, SECRET
    or PASSWORD; 40 hexadecimal digits; ``local-`` with 20 or more characters; ``hf_...``; W&B keys; what is
    assigned to api_key, password and the like; user and password in an address. A git commit has 40 hexadecimal
    digits too: do not pass it through here.

    Args:
        text: anything printable.
        environ: the environment that is searched for secrets; that of the process when None.
    """
    text = str(text)
    for secret in _secrets(os.environ if environ is None else environ):
        text = text.replace(secret, MASK)
    for shape in _SHAPES:
        text = shape.sub(MASK, text)
    text = _IN_URL.sub(rf"\g<1>{MASK}@", text)
    return _ASSIGNED.sub(rf"\g<1>\g<2>{MASK}", text)


def redact_all(texts: Iterable[str]) -> list[str]:
    """`redact` on each of several texts (an argv)."""
    return [redact(text) for text in texts]


def hide_paths(text: str) -> str:
    """Shortens absolute paths to their last part (``/home/me/glue_data`` -> ``.../glue_data``)."""
    return _ABSOLUTE.sub(r".../\1", str(text))


def _secrets(environ: Mapping[str, str]) -> list[str]:
    """The secret values of an environment, longest first so that one within another leaves no rest."""
    values = {value for name, value in environ.items() if _NAMES.search(name) and len(value) >= _SHORTEST}
    return sorted(values, key=len, reverse=True)
