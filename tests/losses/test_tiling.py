"""Blocks, and what is kept of them for backward."""

import pytest
import torch

from hf_segkd.losses.functional.tiling import blocks, recomputed


@pytest.mark.parametrize("length, size", [(7, 3), (6, 3), (2, 5), (0, 4)])
def test_blocks_cover_every_entry_once(length, size):
    """A last block that is left out or taken twice changes a loss by a few percent, which nobody would see."""
    covered = [index for block in blocks(length, size) for index in range(block.start, block.stop)]
    assert covered == list(range(length))
    assert all(block.stop - block.start <= size for block in blocks(length, size))


def test_nothing_inside_a_recomputed_function_is_kept():
    """The exponentials of all blocks together are the map that must not be held."""
    x = torch.ones(4, dtype=torch.float64, requires_grad=True)
    kept = []

    def pack(tensor):
        kept.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = recomputed(lambda x: (2 * x).exp().sum(), x)
    assert set(kept) <= {x.data_ptr(), 0}  # 0: a tensor without memory
    value.backward()
    torch.testing.assert_close(x.grad, 2 * (2 * x).exp().detach())
