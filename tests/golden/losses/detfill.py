"""Deterministic, storage-free initialisation used by the SAGAN cases."""

import math
import zlib

import numpy as np


def det_normal(key: str, shape, salt: int) -> np.ndarray:
    seed = (zlib.crc32(key.encode("utf-8")) + salt) % (2**32)
    return np.random.RandomState(seed).standard_normal(tuple(shape) if len(shape) else (1,)).reshape(tuple(shape))


def det_value(key: str, shape, salt: int) -> np.ndarray:
    """Value of one state-dict entry, chosen from the last part of its key."""
    r = det_normal(key, shape, salt)
    leaf = key.rsplit(".", 1)[-1]
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf in ("weight_u", "weight_v"):
        return r / np.linalg.norm(r)
    if leaf == "weight_bar":
        return r * math.sqrt(2.0 / fan_in)
    if leaf == "gamma":
        return 0.3 + 0.05 * r
    if key.startswith("preprocess_additional."):
        return {"weight": 1 + 0.1 * r, "bias": 0.1 * r, "running_mean": 0.1 * r, "running_var": 1 + 0.1 * np.abs(r)}[
            leaf
        ]
    if leaf == "bias":
        return 0.05 * r
    if leaf == "weight":
        return r * math.sqrt(1.0 / fan_in)
    raise KeyError(key)
