"""Random draws of the losses: reproducible, resumable, and known in every process."""

import zlib
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_segkd.distributed import rank
from hf_segkd.values import check_value

MemoryDtype = Literal["float32", "float16", "bfloat16"]


class SeededDraws(nn.Module):
    """Random draws on the CPU that resume where they stopped: each depends on seed, number of draws and process only.

    The global generator would tie the keys to everything else that draws, and give each process its own queues.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed, self._drawn = seed, 0
        self.register_buffer("drawn", torch.zeros((), dtype=torch.long))
        self.register_load_state_dict_post_hook(_restore_drawn)

    def uniform(self, shape: torch.Size) -> Tensor:
        return torch.rand(shape, generator=self._generator(rank()))

    def permutation(self, size: int, shared: bool = False) -> Tensor:
        """Random order of `range(size)`; the same in every process if `shared`."""
        return torch.randperm(size, generator=self._generator(0 if shared else rank()))

    def unit_rows(self, shape: tuple[int, int, int], dtype: MemoryDtype) -> Tensor:
        """Random unit vectors along the last axis, the same in every process."""
        check_value("memory_dtype", dtype, MemoryDtype)
        generator = self._generator(0)
        rows = torch.empty(shape, dtype=getattr(torch, dtype))
        for part in rows:
            part.copy_(F.normalize(torch.randn(part.shape, generator=generator), dim=-1))
        return rows

    def _generator(self, process: int) -> torch.Generator:
        # `_drawn` is kept beside the buffer because reading a number from the GPU would wait for it.
        self._drawn += 1
        self.drawn += 1
        # Hashed, because torch's CPU generator looks at the low 32 bits of a seed only.
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{self._drawn}/{process}".encode()))


def _restore_drawn(draws: SeededDraws, _) -> None:
    draws._drawn = int(draws.drawn)
