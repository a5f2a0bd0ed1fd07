"""Errors that a user can cause. They are printed as one line, without a stack trace."""


class UserError(ValueError):
    """A bad value, file or setting; the message names it and says what is allowed or what to do."""


class UnknownKey(UserError):
    """A setting that nothing reads.

    Args:
        key: as it is typed, such as method.rank.
        near: the nearest one that there is; empty: none.
    """

    def __init__(self, key: str, near: str = ""):
        super().__init__(f"{key}: no such key" + (f"; did you mean {near}?" if near else ""))
        self.key = key


class DataMissing(UserError):
    """Data or weights that this machine cannot get; the message says what to install or to type."""


class Held(UserError):
    """Another process is running this very cell."""

    EXIT_CODE = 75
    """EX_TEMPFAIL: how a command says so to the launcher that started it."""
