"""Tiny decoders: tests/tiny.py."""

from tests.tiny import tiny


def tiny_decoder(family="gpt2", head="causal_lm", layers=3, attention="eager", **settings):
    """Returns a decoder of hidden 32, 4 heads of 8 (Llama: 8 query heads of 4 on 4 key-value heads), 48 neurons."""
    return tiny(family, head, layers, attention, **settings)
