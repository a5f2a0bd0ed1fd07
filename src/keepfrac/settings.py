"""Settings, written once: a field of a frozen dataclass says what a key means and what it may be.

    class LayerDrop(CostPruner):
        @settings
        class Settings(CostPruner.Settings):
            order: str = choice("which layers go", "top", "alternate")

No field has a default: defaults live in yaml, whose keys are the fields' names. To check settings is to make them:
every value is held against its field when the object is made, and `check` against the other values. `where` is the
config group that the keys stand in, for the messages.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

from keepfrac.errors import UnknownKey, UserError

T = TypeVar("T")
LARGEST = 3.4028234663852886e38
"""The largest number of float32: what lies above it is infinite in training."""
MOST = 2**32 - 1
"""The largest whole number of any field: seeds of numpy go as far, and nothing is counted beyond."""


@dataclass(frozen=True)
class Kind:
    """What values a field takes.

    Args:
        holds: whether a value is one of them.
        says: the same in words, after "must be".
    """

    holds: Callable[[Any], bool]
    says: str


def setting(doc: str, kind: Kind, null: bool = False) -> Any:
    """Returns a field of a given kind.

    Args:
        doc: what it means, with its unit.
        kind: the values that it takes.
        null: whether it may be None as well.
    """
    return field(metadata={"doc": doc, "kind": or_null(kind) if null else kind})


def or_null(kind: Kind) -> Kind:
    """Returns a kind that also takes None."""
    return Kind(lambda value: value is None or kind.holds(value), f"{kind.says}, or null")


def in_range(low: float, high: float = math.inf, ends: str = "[]") -> Kind:
    """Returns the kind of numbers between two ends, "[" and "]" with the end itself, "(" and ")" without it."""

    def holds(value: Any) -> bool:
        # NaN fails the comparison too
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            return False
        above = value > low if ends[0] == "(" else value >= low
        return above and (value < high if ends[1] == ")" else value <= high)

    return Kind(holds, f"a number in {ends[0]}{low:g}, {high:g}{')' if high == math.inf else ends[1]}")


def whole(least: int, most: int = MOST) -> Kind:
    """Returns the kind of whole numbers from `least` to `most`."""
    return Kind(
        lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most,
        f"a whole number >= {least}" + (f" and <= {most}" if most < MOST else " and < 2^32"),
    )


def one_of(*allowed: Any) -> Kind:
    """Returns the kind of these values."""
    return Kind(
        lambda value: any(value == one and type(value) is type(one) for one in allowed),
        "one of " + ", ".join(map(str, allowed)),
    )


def number(doc: str, low: float = 0.0, high: float = math.inf, ends: str = "[]", null: bool = False) -> Any:
    """Returns a field for a number in a range."""
    return setting(doc, in_range(low, high, ends), null)


def share(doc: str, ends: str = "[]", null: bool = False) -> Any:
    """Returns a field for a share, between 0 and 1."""
    return setting(doc, in_range(0, 1, ends), null)


def count(doc: str, least: int = 1, null: bool = False, most: int = MOST) -> Any:
    """Returns a field for a whole number."""
    return setting(doc, whole(least, most), null)


def choice(doc: str, *allowed: Any, null: bool = False) -> Any:
    """Returns a field for one of some values."""
    return setting(doc, one_of(*allowed), null)


def flag(doc: str) -> Any:
    """Returns a field for true or false."""
    return setting(doc, Kind(lambda value: isinstance(value, bool), "true or false"))


def text(doc: str, null: bool = False) -> Any:
    """Returns a field for a text that is not empty."""
    return setting(doc, Kind(lambda value: isinstance(value, str) and bool(value), "a text"), null)


def some_of(doc: str, *allowed: str, null: bool = False) -> Any:
    """Returns a field for a list of some values, without repetition; not empty."""

    def holds(value: Any) -> bool:
        return (
            isinstance(value, list | tuple)
            and 0 < len(value) == len(set(map(str, value)))
            and all(one in allowed for one in value)
        )

    return setting(doc, Kind(holds, "a list of some of " + ", ".join(allowed)), null)


def texts(doc: str, example: str, null: bool = False) -> Any:
    """Returns a field for a list of texts, not empty; an example is for the message."""

    def holds(value: Any) -> bool:
        return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, str) and one for one in value)

    return setting(doc, Kind(holds, f"a list of texts, such as {example}"), null)


def mapping(doc: str, each: Kind, *keys: str, null: bool = False) -> Any:
    """Returns a field for a mapping from some of `keys` (any names, where none are given) to values of one kind."""

    def holds(value: Any) -> bool:
        return isinstance(value, Mapping) and all(
            isinstance(key, str) and (not keys or key in keys) and each.holds(one) for key, one in value.items()
        )

    of = " of " + ", ".join(keys) if keys else ""
    return setting(doc, Kind(holds, f"a mapping{of}, each {each.says}"), null)


def record(doc: str, null: bool = False, **kinds: Kind) -> Any:
    """Returns a field for a mapping of exactly these keys, with a kind for each."""

    def holds(value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and set(value) == set(kinds)
            and all(kind.holds(value[key]) for key, kind in kinds.items())
        )

    says = ", ".join(f"{key} ({kind.says})" for key, kind in kinds.items())
    return setting(doc, Kind(holds, f"a mapping of {says}, and of nothing else"), null)


@dataclass_transform(
    frozen_default=True,
    kw_only_default=True,
    field_specifiers=(setting, number, share, count, choice, flag, text, some_of, texts, mapping, record),
)
def settings(cls: type[T]) -> type[T]:
    """Makes a class of fields a frozen dataclass of keywords."""
    return dataclass(frozen=True, kw_only=True)(cls)


@settings
class Settings:
    """The base of all: values are held against their fields when they come together."""

    where: ClassVar[str] = ""
    """The config group of the keys, such as "method"; empty: keys of the top level."""

    def __post_init__(self) -> None:
        for one in fields(self):
            kind, value = one.metadata["kind"], getattr(self, one.name)
            if not kind.holds(value):
                raise self.error(one.name, _problem(kind, self.key(one.name), value))
        self.check()

    def check(self) -> None:
        """Holds the values against one another.

        Raises:
            UserError: two of them cannot be together; made by `error`.
        """

    def error(self, key: str, problem: str) -> UserError:
        """Returns the error that names a key, its value and what is wrong with it."""
        return UserError(f"{self.key(key)}={_shown(getattr(self, key))}: {problem}")

    @classmethod
    def key(cls, name: str) -> str:
        """Returns the name of a key as it is typed."""
        return f"{cls.where}.{name}" if cls.where else name

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """Returns the names of the keys."""
        return tuple(one.name for one in fields(cls))

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """Makes them from a config group; `_target_` is not one of them.

        Raises:
            UserError: an unknown or a missing key, or a value that a field does not take.
        """
        given = {key: value for key, value in given.items() if key != "_target_"}
        for key in given:
            if key not in cls.names():
                near = difflib.get_close_matches(key, cls.names(), n=1)
                raise UnknownKey(cls.key(key), near[0] if near else "")
        if missing := [cls.key(name) for name in cls.names() if name not in given]:
            raise UserError(f"{', '.join(missing)}: a value is needed")
        return cls(**given)

    def plain(self) -> dict[str, Any]:
        """Returns the keys and values as a dictionary."""
        return asdict(self)


def rising(settings: Settings, *names: str) -> None:
    """Holds settings that must not fall from one to the next; None is passed over.

    Raises:
        UserError: names the two.
    """
    known = [name for name in names if getattr(settings, name) is not None]
    for low, high in pairwise(known):
        if getattr(settings, low) > getattr(settings, high):
            raise settings.error(low, f"must rise, and {settings.key(high)}={getattr(settings, high)} is below it")


def _problem(kind: Kind, key: str, value: Any) -> str:
    """Says what a value must be; of a text that YAML reads as a number (inf, 2024), how it is typed."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"must be {kind.says}"
    if kind.holds(str(value)):
        return f"is read as a number; as a text it is typed {key}='\"{value}\"'"
    return f"must be {kind.says}" + (", and finite in float32" if abs(value) > LARGEST else "")


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
