"""KL between softmaxed similarity maps, without ever holding a map.

A map of N anchors and M keys has N·M entries: 2 GB in float32 for two images of 64×128 positions, teacher and student.
Both KL functions walk over blocks of it. They are exact: only the order of the sums differs from the plain formula.

Each has two forms. Triton kernels compute float32, float16 and bfloat16 on NVIDIA GPUs from compute capability 8.0 on
where `triton` is installed, which PyTorch's CUDA builds see to; PyTorch operations compute the rest. The environment
variable `HF_SEGKD_SIMILARITY` chooses otherwise: `torch` always takes PyTorch's form, `bf16` lets the kernels round
float32 unit vectors to bfloat16 (twice tf32's rate; the gradient's error grows as the student comes close to the
teacher). The default `auto` multiplies float32 in tf32 where `torch.backends.cuda.matmul` does.
"""

import importlib.util
import os
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_segkd.losses.functional.tiling import blocks
from hf_segkd.values import check_choice

# exp(60)·8192 and its inverse are ordinary float32 numbers: below it sums of exponentials need no running maximum.
LARGEST_PLAIN_EXPONENT = 60.0
FORMS = ("auto", "torch", "bf16")
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
FIRST_CAPABILITY = (8, 0)  # Ampere: the first with tf32
SMALLEST_NORM = 1e-12  # as F.normalize
CPU_TILE, GPU_TILE = 512, 4096
CPU_BLOCK, GPU_BLOCK = 2**20, 2**24


def unit_vectors(x: Tensor) -> Tensor:
    """Rows of `x` (..., C) divided by their norms, as `F.normalize(x, dim=-1)`, with a leaner backward.

    Kept for backward: the result, which the similarity needs anyway, and one norm per row; `x` itself is given back.
    It can be differentiated once.
    """
    return _UnitVectors.apply(x)


def image_pair_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean KL(teacher ‖ student) of the similarities between the rows of every ordered pair of images.

    For images i and j (i = j included) `A_ij = X_i X_jᵀ / temperature` is softmaxed over the rows of image j alone.

    Args:
        student (`torch.Tensor` of shape `(B, N, C)`): Unit vectors; gets the gradient, as anchor and as key.
        teacher (`torch.Tensor` of shape `(B, N, C')`): Unit vectors, taken as constants. C' may differ from C.
        temperature (`float`): Softmax temperature, > 0.

    Returns:
        `torch.Tensor`: Scalar, `1/(B²·N) Σ_ij Σ_rows KL`. Kept for backward: the inputs and 2·B²·N sums.

    Raises:
        ValueError: If the two do not have the same images and rows.
    """
    if student.shape[:2] != teacher.shape[:2]:
        raise ValueError(
            f"student and teacher must have the same images and rows, got {tuple(student.shape[:2])} and "
            f"{tuple(teacher.shape[:2])}. Resize the teacher's map first."
        )
    if uses_kernels(student):
        # Here, because importing Triton takes time and a GPU is rarely there.
        from hf_segkd.losses.functional.similarity_triton import PairKL as function
    elif 1 / temperature <= LARGEST_PLAIN_EXPONENT:
        function = _SymmetricPairKL
    else:
        function = _RowPairKL
    return function.apply(student, teacher.detach(), temperature)


def bank_kl(student: Tensor, teacher: Tensor, keys: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Weighted sum of KL(teacher ‖ student) of the similarities between anchors and a constant bank of keys.

    Args:
        student (`torch.Tensor` of shape `(N, C)`): Anchors; the only input with a gradient.
        teacher (`torch.Tensor` of shape `(N, C)`): The same anchors as the teacher sees them.
        keys (`torch.Tensor` of shape `(M, C)`): The bank; the softmax runs over its M rows.
        weights (`torch.Tensor` of shape `(N,)`): Weight of each anchor, 0 to leave it out.
        temperature (`float`): Softmax temperature, > 0.

    Returns:
        `torch.Tensor`: Scalar, `Σ_n weights_n · KL_n`. Kept for backward: one tensor of the anchors' size.
    """
    if uses_kernels(student):
        from hf_segkd.losses.functional.similarity_triton import BankKL as function
    else:
        function = _BankKL
    return function.apply(student, teacher.detach(), keys.detach(), weights.detach(), temperature)


def chosen_form() -> str:
    """The value of `HF_SEGKD_SIMILARITY`.

    Raises:
        ValueError: If it is none of `FORMS`.
    """
    form = os.environ.get("HF_SEGKD_SIMILARITY", "auto")
    check_choice("HF_SEGKD_SIMILARITY", form, FORMS)
    return form


def uses_kernels(x: Tensor) -> bool:
    """Whether Triton's kernels compute on `x`; with `TRITON_INTERPRET=1` its interpreter runs them on a CPU."""
    if chosen_form() == "torch" or x.dtype not in KERNEL_DTYPES:
        return False
    if not x.is_cuda:
        return os.environ.get("TRITON_INTERPRET") == "1"
    # A ROCm build of PyTorch calls its device cuda too.
    known = torch.version.cuda is not None and torch.cuda.get_device_capability(x.device) >= FIRST_CAPABILITY
    return known and importlib.util.find_spec("triton") is not None


def _similarities(rows: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """`rows columnsᵀ / temperature`, the division inside the product."""
    return torch.addmm(rows.new_empty(()), rows, columns.T, beta=0, alpha=1 / temperature)


class _UnitVectors(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_(min=SMALLEST_NORM)
        units = x / norms
        ctx.save_for_backward(units, norms)
        return units

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        units, norms = ctx.saved_tensors
        along = torch.linalg.vecdot(units, grad, dim=-1)[..., None]
        return (units * -along).add_(grad).div_(norms)


class _SymmetricPairKL(torch.autograd.Function):
    """Block (j, i) of the similarities is the transpose of block (i, j): each tile serves both directions."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        images, positions, _ = student.shape
        s, t = student.flatten(0, 1), teacher.flatten(0, 1)
        sums_s, sums_t, cross = (s.new_zeros(images * positions, images) for _ in range(3))
        for (i, rows), (j, columns) in tiles(student):
            tile_s, tile_t = (_similarities(x[rows], x[columns], temperature) for x in (s, t))
            difference = tile_t - tile_s
            # In place, so that the tiles stay in the cache.
            difference.mul_(tile_t.exp_())
            for total, tile in ((sums_s, tile_s.exp_()), (sums_t, tile_t), (cross, difference)):
                total[rows, j] += tile.sum(dim=1)
                if rows != columns:
                    total[columns, i] += tile.sum(dim=0)
        ctx.save_for_backward(student, teacher, sums_s, sums_t)
        ctx.temperature = temperature
        # The logarithm of a ratio: two logarithms of up to 70 would leave their rounding in the difference. Of roots,
        # because a ratio of up to exp(120) is too large for float32.
        return (cross / sums_t - 2 * (sums_t.sqrt() / sums_s.sqrt()).log()).mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        student, teacher, sums_s, sums_t = ctx.saved_tensors
        s, t = student.flatten(0, 1), teacher.flatten(0, 1)
        scale = grad / (sums_s.numel() * ctx.temperature)
        scale_s, scale_t = scale / sums_s, scale / sums_t
        gradient = torch.zeros_like(s)
        for (i, rows), (j, columns) in tiles(student):
            exp_s, exp_t = (_similarities(x[rows], x[columns], ctx.temperature).exp_() for x in (s, t))
            factor_s, factor_t = scale_s[rows, j][:, None], scale_t[rows, j][:, None]
            if rows != columns:
                factor_s, factor_t = factor_s + scale_s[columns, i], factor_t + scale_t[columns, i]
            tile = exp_s.mul_(factor_s).sub_(exp_t.mul_(factor_t))
            gradient[rows].addmm_(tile, s[columns])
            gradient[columns].addmm_(tile.T, s[rows])
        return gradient.view_as(student), None, None


class _RowPairKL(torch.autograd.Function):
    """Row blocks with exact maxima: for temperatures so low that plain exponentials overflow."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        images, positions, _ = student.shape
        kl = student.new_zeros(images, images, positions)
        for i, j, rows in _row_blocks(student):
            log_p_s = (student[i, rows] @ student[j].T / temperature).log_softmax(dim=1)
            log_p_t = (teacher[i, rows] @ teacher[j].T / temperature).log_softmax(dim=1)
            kl[i, j, rows] = (log_p_t.exp() * (log_p_t - log_p_s)).sum(dim=1)
        ctx.save_for_backward(student, teacher)
        ctx.temperature = temperature
        return kl.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        student, teacher = ctx.saved_tensors
        images, positions, _ = student.shape
        scale = grad / (images**2 * positions * ctx.temperature)
        gradient = torch.zeros_like(student)
        for i, j, rows in _row_blocks(student):
            p_s = (student[i, rows] @ student[j].T / ctx.temperature).softmax(dim=1)
            p_t = (teacher[i, rows] @ teacher[j].T / ctx.temperature).softmax(dim=1)
            block = (p_s - p_t) * scale
            gradient[i, rows] += block @ student[j]
            gradient[j] += block.T @ student[i, rows]
        return gradient, None, None


class _BankKL(torch.autograd.Function):
    """Keys and teacher are constants, so the gradient of a block of rows is known as soon as its softmax is."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, keys: Tensor, weights: Tensor, temperature: float) -> Tensor:
        total = student.new_zeros(())
        gradient = torch.zeros_like(student) if ctx.needs_input_grad[0] else None
        for rows in blocks(len(student), rows_per_block(keys, len(keys))):
            # The temperature divides the anchors, which are fewer than their similarities.
            log_p_s = (student[rows] / temperature @ keys.T).log_softmax(dim=1)
            log_p_t = (teacher[rows] / temperature @ keys.T).log_softmax(dim=1)
            p_t = log_p_t.exp()
            total += weights[rows] @ log_p_t.sub_(log_p_s).mul_(p_t).sum(dim=1)
            if gradient is not None:
                gradient[rows] = (log_p_s.exp_().sub_(p_t) @ keys).mul_(weights[rows, None] / temperature)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None, None


def tiles(x: Tensor) -> Iterator[tuple[tuple[int, slice], tuple[int, slice]]]:
    """Pairs (image, rows) on and above the diagonal of the (B·N)×(B·N) map; no tile crosses from image to image."""
    images, positions, _ = x.shape
    size = tile_size(x)
    parts = [
        (i, slice(i * positions + rows.start, i * positions + rows.stop))
        for i in range(images)
        for rows in blocks(positions, size)
    ]
    for index, block in enumerate(parts):
        for other in parts[index:]:
            yield block, other


def tile_size(x: Tensor) -> int:
    """Rows and columns of the blocks of the map that exist at once."""
    return GPU_TILE if x.is_cuda else CPU_TILE


def _row_blocks(x: Tensor) -> Iterator[tuple[int, int, slice]]:
    images, positions, _ = x.shape
    step = rows_per_block(x, positions)
    for i in range(images):
        for j in range(images):
            for rows in blocks(positions, step):
                yield i, j, rows


def rows_per_block(x: Tensor, columns: int) -> int:
    """Rows of a map with `columns` that exist at once."""
    return max(1, (GPU_BLOCK if x.is_cuda else CPU_BLOCK) // columns)
