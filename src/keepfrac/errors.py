"""Errors that a user can cause. They are printed as one line, without a stack trace."""


class UserError(ValueError):
    """A bad value, file or setting; the message names it and says what is allowed or what to do."""


class DataMissing(UserError):
    """Data or weights that this machine cannot get; the message says what to install or to type."""


class Held(UserError):
    """Another process is running this very cell."""

    EXIT_CODE = 75
    """EX_TEMPFAIL: how a command says so to the launcher that started it."""
