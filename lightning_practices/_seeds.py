"""Seeds that depend on nothing but given numbers."""

import random
from hashlib import blake2b

import numpy as np
import torch


def hashed(*numbers: int) -> int:
    """Return 64 bits that are the same for the same numbers, in any process."""
    digest = blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def seed_generators(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch's CPU, and not those of accelerators.

    Args:
        seed: A number of at most 64 bits.
    """
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch.default_generator.manual_seed(seed)
