"""Tiny encoders: tests/tiny.py."""

from tests.tiny import inputs, tiny

__all__ = ["inputs", "tiny"]
