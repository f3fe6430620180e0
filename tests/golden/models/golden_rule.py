"""Deterministic fill rule for the golden vectors. Needs numpy only.

Every tensor of a state dict is a pure function of (salt, key, shape, gain); salt and
gain are written in the JSON next to the vectors, with keys in ORIGINAL checkpoint names.

The random source is the raw 64-bit PCG64 stream (stable by NEP 19), never a numpy
distribution, so the numbers do not depend on the numpy or torch version:

    crc  = zlib.crc32((salt + ":" + key).encode())
    raw  = numpy.random.PCG64(crc).random_raw(n)            # uint64
    u    = (raw >> 11) * 2**-53                             # float64 in [0, 1)
    s    = (2 * u - 1) * sqrt(3)                            # zero mean, unit variance

then, C order reshape, float64 arithmetic, cast to float32 at the end:

    num_batches_tracked            0 (int64)
    running_mean                   0.1 * s
    running_var                    0.5 + u
    bias / *_bias (1-D)            0.1 * s
    PReLU slope (act.weight, 1-D)  0.1 + 0.3 * u
    other 1-D weight (norm gamma)  (0.75 + 0.5 * u) * sign, sign = -1 where
                                   (raw & 0xF) == 0 else +1 (negative gammas on purpose:
                                   InPlace-ABN uses abs(gamma) + eps, BatchNorm does not)
    weight with ndim >= 2          gain * s / sqrt(prod(shape[1:]))

The input image is the tensor of key "input" (shape 1x3xHxW):
    x = s + sin(2*pi*(c+1)*h/H) + cos(2*pi*(c+2)*w/W)      (c, h, w indices)
"""

import math
import zlib

import numpy as np


def raw(salt, key, n):
    return np.random.PCG64(zlib.crc32(f"{salt}:{key}".encode())).random_raw(n)


def uniform(salt, key, shape):
    n = int(np.prod(shape)) if len(shape) else 1
    r = raw(salt, key, n)
    u = (r >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return r.reshape(shape), u.reshape(shape)


def fill(salt, key, shape, gain=1.0):
    shape = tuple(shape)
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    r, u = uniform(salt, key, shape)
    s = (2 * u - 1) * math.sqrt(3.0)
    if key.endswith("running_mean"):
        v = 0.1 * s
    elif key.endswith("running_var"):
        v = 0.5 + u
    elif key.endswith("bias"):
        v = 0.1 * s
    elif len(shape) == 1 and key.endswith("act.weight"):
        v = 0.1 + 0.3 * u
    elif len(shape) == 1:
        v = 0.75 + 0.5 * u
        v = np.where((r & np.uint64(15)) == 0, -v, v)
    else:
        v = gain * s / math.sqrt(float(np.prod(shape[1:])))
    return v.astype(np.float32)


def image(salt, h, w):
    _, u = uniform(salt, "input", (1, 3, h, w))
    x = (2 * u - 1) * math.sqrt(3.0)
    c = np.arange(3, dtype=np.float64)[:, None, None]
    hh = np.arange(h, dtype=np.float64)[None, :, None]
    ww = np.arange(w, dtype=np.float64)[None, None, :]
    x = x + np.sin(2 * np.pi * (c + 1) * hh / h) + np.cos(2 * np.pi * (c + 2) * ww / w)
    return x.astype(np.float32)


CAP = 3500


def sample(flat, cap=CAP):
    """Stored values of a tensor: all of it when small, else a fixed scattered subset."""
    n = flat.shape[0]
    if n <= cap:
        return flat
    return flat[(np.arange(cap, dtype=np.int64) * 1000003) % n]
