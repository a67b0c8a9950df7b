"""The reference model and recipe: every field at its default.

    python train.py --config=configs/base.py

A 4-layer, 128-wide pre-norm decoder with rotary positions (0.82M parameters) reads 16.4M bytes of Python's own
standard library, more than twice what Python 3.11 has of it.
"""

from transformer.config import default_config


def get_config():
    return default_config()
