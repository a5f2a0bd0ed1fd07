"""Hydra finds launchers only in the namespace package `hydra_plugins`; what they do lives in `sweep`."""
