"""Cross-entropy of upsampled logits, without ever holding the upsampled logits.

At 512×1024 pixels two images of 150 classes are 600 MB of logits, three times over in the plain formulation. Here they
exist one band of rows at a time, and each band leaves only its share of the gradient at the logits' own size.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_segkd.losses.functional.tiling import blocks

CPU_BAND, GPU_BAND = 2**20, 2**25  # numbers per band: 4 MiB stay in a CPU's cache, 128 MiB fill a GPU
# The rows of logits that two bands share are upsampled twice: with fewer label rows per band that would dominate.
FEWEST_ROWS = 16


def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, class_weights: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy over the pixels that count, at the size of the labels, in memory of the logits' size.

    The same value and gradient as [`~hf_segkd.models.outputs.segmentation_loss`]. Where TF32 matrix products are
    switched on, they also upsample, and logits are rounded as by the convolution that made them.

    Args:
        logits (`torch.Tensor` of shape `(B, K, h, w)`): Class scores, resized bilinearly to the labels.
        labels (`torch.Tensor` of shape `(B, H, W)`): Class ids, any integer type; H and W may be smaller than h and w.
        ignore_index (`int`): Label of the pixels to skip.
        align_corners (`bool`): Whether the corner pixels of logits and labels coincide when resizing.
        class_weights (`torch.Tensor` of shape `(K,)`, *optional*): What a pixel of each class counts in the mean, as
            in `torch.nn.functional.cross_entropy`; defaults to 1.

    Returns:
        `torch.Tensor`: Scalar, in nats; zero with a graph if no pixel counts. Kept for backward: one tensor of the
        logits' size. It can be differentiated once.

    Raises:
        ValueError: If logits and labels are not of the same images.
    """
    if logits.ndim != 4 or labels.ndim != 3 or len(logits) != len(labels):
        raise ValueError(
            f"logits must be (B, K, h, w) and labels (B, H, W) with the same B, got {tuple(logits.shape)} and "
            f"{tuple(labels.shape)}."
        )
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        weights = logits.new_ones(logits.shape[1]) if class_weights is None else class_weights.to(logits)
        return _BandedCrossEntropy.apply(logits, labels, ignore_index, align_corners, weights)


class _BandedCrossEntropy(torch.autograd.Function):
    """The gradient of a band is known as soon as its softmax is, so it is brought back to h×w in the forward pass."""

    @staticmethod
    def forward(
        ctx, logits: Tensor, labels: Tensor, ignore_index: int, align_corners: bool, weights: Tensor
    ) -> Tensor:
        size = labels.shape[-2:]
        resize = _SameSize() if logits.shape[-2:] == size else _Bilinear(logits, size, align_corners)
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] else None
        total, count = logits.new_zeros(()), logits.new_zeros(())
        for image, rows in _bands(logits, size):
            x = resize.apply(logits[image], rows)
            target = labels[image, rows].long()
            seen = target != ignore_index
            target = target.where(seen, 0)
            counts = seen * weights[target]
            total += _to_gradient(x, target[None], counts)
            count += counts.sum()
            if gradient is not None:
                gradient[image, :, resize.reads(rows)] += resize.transpose(x, rows)
            del x  # Before the next band is allocated.
        count = count.where(count > 0, 1)
        ctx.save_for_backward(None if gradient is None else gradient.div_(count))
        return total / count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None, None


def _to_gradient(x: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Summed cross-entropy of logits `x` (K, R, W), which are turned into its gradient in place.

    `target` (1, R, W) holds class ids, `counts` (R, W) what each pixel counts, 0 for those to skip.
    """
    x -= x.amax(dim=0)
    chosen = x.gather(0, target)[0]
    sums = x.exp_().sum(dim=0)
    x *= counts / sums
    x.scatter_add_(0, target, -counts[None])
    return (counts * (sums.log() - chosen)).sum()


class _SameSize:
    """Logits that are as large as the labels."""

    def reads(self, rows: slice) -> slice:
        return rows

    def apply(self, x: Tensor, rows: slice) -> Tensor:
        return x[:, rows].clone()

    def transpose(self, x: Tensor, rows: slice) -> Tensor:
        return x


class _Bilinear:
    """Bilinear map from (K, h, w) to a band of rows of (K, H, W), and its transpose.

    Columns come first: a row of logits serves several label rows, and is enlarged once for all of them.
    """

    def __init__(self, logits: Tensor, size: torch.Size, align_corners: bool):
        self.align_corners = align_corners
        self.rows, self.columns = (
            _weights(length, target, align_corners, logits)
            for length, target in zip(logits.shape[-2:], size, strict=True)
        )

    def reads(self, rows: slice) -> slice:
        """Rows of the logits that label rows are made of."""
        height, target = self.rows.shape
        first, last = (self._position(row, height, target) for row in (rows.start, rows.stop - 1))
        # 1e-3: a position in float32 may lie on the other side of an integer.
        return slice(max(0, int(first - 1e-3)), min(height, int(last + 1e-3) + 2))

    def _position(self, row: int, height: int, target: int) -> float:
        if self.align_corners:
            return row * (height - 1) / max(target - 1, 1)
        return max((row + 0.5) * height / target - 0.5, 0)

    def apply(self, x: Tensor, rows: slice) -> Tensor:
        reads = self.reads(rows)
        return self.rows[reads, rows].T @ (x[:, reads] @ self.columns)

    def transpose(self, x: Tensor, rows: slice) -> Tensor:
        return self.rows[self.reads(rows), rows] @ x @ self.columns.T


def _weights(length: int, target: int, align_corners: bool, like: Tensor) -> Tensor:
    """Share (length, target) of each old position in each new one: the unit vectors interpolated by torch itself."""
    units = torch.eye(length, dtype=like.dtype, device=like.device)
    return F.interpolate(units[None], size=target, mode="linear", align_corners=align_corners)[0]


def _bands(logits: Tensor, size: torch.Size) -> Iterator[tuple[int, slice]]:
    batch, classes = logits.shape[:2]
    height, width = size
    step = max(FEWEST_ROWS, (GPU_BAND if logits.is_cuda else CPU_BAND) // (classes * width))
    for image in range(batch):
        for rows in blocks(height, step):
            yield image, rows
