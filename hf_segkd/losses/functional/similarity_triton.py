"""Triton kernels of the similarity KL for NVIDIA GPUs; `similarity.py` holds the formula and chooses the form.

Two kernels serve pairs of images and memory banks. Both form tiles of the student's and the teacher's similarities, in
one loop over chunks of channels with float32 sums, and drop them again; no tile leaves the multiprocessor.

* `_sums` owns a block of anchors and streams the keys of one image: log-sum-exp of student and teacher with running
  maxima, exact at any temperature, and the cross term `Σ p_t (t - s)`. The maxima are subtracted from t and s before
  anything is summed: similarities of 700, as at temperature 0.002, would leave their rounding (3e-5) in the KL.
* `_differences` recomputes similarities and writes `D = p_s - p_t` for one block of at most 4096×4096 positions. Block
  (j, i) of the similarities is the transpose of block (i, j), so D holds both directions, and only blocks on and above
  the diagonal are formed. The products of D with the features are left to cuBLAS: a kernel that formed them too would
  keep a float32 sum per row and channel. 128 rows of 512 channels are a multiprocessor's whole register file, and
  fewer rows would read the keys from the cache too often.

Rounding: the inputs may be tf32 or bfloat16, sums and exponentials are float32. With bfloat16 inputs D is stored in
bfloat16 too. It is a difference already: its rounding does not grow when student and teacher are close, as that of the
inputs does and that of the maps would. Similarities and log-sum-exps are in base 2: exp2 is one instruction.
"""

import math
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from hf_segkd.losses.functional import similarity

# Compute capabilities with 227 KiB of shared memory per block: H100, H200, B200.
LARGE_SHARED_MEMORY = (9, 10)
# Below every similarity, but finite: differences of two of them enter the cross term.
LOWEST = tl.constexpr(-1e30)
ALIGNMENT = 16  # elements; rows of D start where cuBLAS reads fastest


class PairKL(torch.autograd.Function):
    """The kernels' form of [`~hf_segkd.losses.functional.similarity.image_pair_kl`]."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        dtype, precision = _precision(student)
        s, t = (x.to(dtype).contiguous() for x in (student, teacher))
        logs_s, logs_t, divergences = _log_sums(s, t, s, t, temperature, precision)
        ctx.save_for_backward(s, t, logs_s, logs_t)
        ctx.dtype, ctx.temperature, ctx.precision = student.dtype, temperature, precision
        return divergences.mean().to(student.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        s, t, logs_s, logs_t = ctx.saved_tensors
        flat_s, flat_t = s.flatten(0, 1), t.flatten(0, 1)
        gradient, features = torch.zeros_like(flat_s, dtype=torch.float32), _factor(flat_s)
        size = min(similarity.tile_size(s), s.shape[1])
        buffer = _buffer(size, size, features)
        for (i, rows), (j, columns) in similarity.tiles(s):
            images = [(flat_s[rows], flat_t[rows]), (flat_s[columns], flat_t[columns])]
            logs = [(logs_s[j, rows], logs_t[j, rows]), (logs_s[i, columns], logs_t[i, columns])]
            tile = _difference(buffer, *images, *logs, ctx.temperature, ctx.precision)
            _add_product(gradient[rows], tile, features[columns])
            if rows != columns:
                _add_product(gradient[columns], tile.T, features[rows])
        gradient *= grad.float() / (logs_s.numel() * ctx.temperature)
        return gradient.view_as(s).to(ctx.dtype), None, None


class BankKL(torch.autograd.Function):
    """`bank_kl` of `similarity.py` in Triton: its gradient is formed in the forward pass too."""

    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, keys: Tensor, weights: Tensor, temperature: float) -> Tensor:
        dtype, precision = _precision(student)
        s, t, keys = (x.to(dtype).contiguous() for x in (student, teacher, keys))
        logs_s, logs_t, divergences = _log_sums(s[None], t[None], keys[None], keys[None], temperature, precision)
        weights, gradient = weights.float(), None
        if ctx.needs_input_grad[0]:
            gradient, features = torch.zeros_like(s, dtype=torch.float32), _factor(keys)
            buffer = _buffer(min(similarity.rows_per_block(s, len(keys)), len(s)), len(keys), features)
            for rows in _slices(len(s), len(buffer)):
                logs = logs_s[0, rows], logs_t[0, rows]
                tile = _difference(buffer, (s[rows], t[rows]), (keys, keys), logs, None, temperature, precision)
                _add_product(gradient[rows], tile, features)
            gradient = gradient.mul_(weights[:, None] / temperature).to(student.dtype)
        ctx.save_for_backward(gradient)
        return (weights @ divergences[0]).to(student.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None, None, None, None


def _precision(student: Tensor) -> tuple[torch.dtype, str]:
    """Dtype of the inputs of the matrix products and Triton's name for how float32 ones are multiplied."""
    if student.dtype != torch.float32:
        return student.dtype, "ieee"
    if similarity.chosen_form() == "bf16":
        return torch.bfloat16, "ieee"
    # Three tf32 products stand for one float32 product: tensor cores instead of scalar units, 21 bits or more.
    return torch.float32, "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def _log_sums(s, t, keys_s, keys_t, temperature: float, precision: str) -> list[Tensor]:
    """Log-sum-exps (base 2) of student and teacher, and KL (nats), each (images of keys, images of anchors · N)."""
    (images, count, _), (key_images, key_count, _) = s.shape, keys_s.shape
    sums = [s.new_empty(key_images, images * count, dtype=torch.float32) for _ in range(3)]
    options = _options(s, t, precision)
    grid = (triton.cdiv(count, options["ROWS"]) * images * key_images,)
    inputs = [_readable(x) for x in (s, t, keys_s, keys_t)]
    _sums[grid](*inputs, *sums, count, key_count, images, _scale(temperature), **options)
    return sums


def _difference(buffer, anchors, keys, row_logs, column_logs, temperature: float, precision: str) -> Tensor:
    """D of a block, written into `buffer`; with `column_logs` in both directions. Pairs are (student's, teacher's)."""
    count, key_count = len(anchors[0]), len(keys[0])
    options = _options(*anchors, precision)
    grid = (triton.cdiv(count, options["ROWS"]) * triton.cdiv(key_count, options["COLUMNS"]),)
    _differences[grid](
        *(_readable(x) for x in (*anchors, *keys)),
        *row_logs,
        *(column_logs or row_logs),
        buffer,
        count,
        key_count,
        buffer.stride(0),
        _scale(temperature),
        SYMMETRIC=column_logs is not None,
        PLAIN=1 / temperature <= similarity.LARGEST_PLAIN_EXPONENT,
        **options,
    )
    return buffer[:count, :key_count]


def _options(s: Tensor, t: Tensor, precision: str) -> dict:
    """Channels, tile sizes, warps and pipeline stages: the largest tiles whose sums fit the registers."""
    large = _capability(s)[0] in LARGE_SHARED_MEMORY
    tripled = precision == "tf32x3"
    return {
        "CHANNELS_S": s.shape[-1],
        "CHANNELS_T": t.shape[-1],
        "ROWS": 128,
        "COLUMNS": 128 if large and not tripled else 64,
        "CHUNK": 16 if tripled and not large else 128 // s.element_size(),
        "PRECISION": precision,
        "num_warps": 8,
        "num_stages": 3 if large else 2,
    }


def _capability(x: Tensor) -> tuple[int, int]:
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else (LARGE_SHARED_MEMORY[0], 0)


def _scale(temperature: float) -> float:
    return math.log2(math.e) / temperature


def _readable(x: Tensor) -> Tensor:
    # Triton's interpreter multiplies no bfloat16; float32 holds the same numbers.
    return x.float() if not x.is_cuda and x.dtype == torch.bfloat16 else x


def _factor(features: Tensor) -> Tensor:
    """The features as D is multiplied with them: float16 has too few exponents for D, so that product is float32."""
    return features if features.dtype == torch.bfloat16 else features.float()


def _buffer(rows: int, columns: int, features: Tensor) -> Tensor:
    return features.new_empty(rows, -(-columns // ALIGNMENT) * ALIGNMENT)


def _slices(count: int, step: int) -> Iterator[slice]:
    for start in range(0, count, step):
        yield slice(start, min(start + step, count))


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a @ b` in place, with float32 sums."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    elif a.is_cuda:
        total += torch.mm(a, b, out_dtype=total.dtype)
    else:
        total.addmm_(a.float(), b.float())


@triton.jit
def _similarities(
    anchors_s, anchors_t, keys_s, keys_t, rows, columns, row_count, column_count, scale,
    CHANNELS_S: tl.constexpr, CHANNELS_T: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Student's and teacher's similarities (ROWS, COLUMNS) of blocks of anchors and keys, times `scale`."""
    longest: tl.constexpr = CHANNELS_S if CHANNELS_S > CHANNELS_T else CHANNELS_T
    s = tl.zeros((rows.shape[0], columns.shape[0]), dtype=tl.float32)
    t = tl.zeros((rows.shape[0], columns.shape[0]), dtype=tl.float32)
    a_row, a_key = rows[:, None] < row_count, columns[:, None] < column_count
    # One loop for both: two would each wait for their first loads.
    for start in range(0, longest, CHUNK):
        channels = (start + tl.arange(0, CHUNK))[None, :]
        of_student, of_teacher = channels < CHANNELS_S, channels < CHANNELS_T
        anchor = tl.load(anchors_s + rows[:, None] * CHANNELS_S + channels, mask=a_row & of_student, other=0.0)
        key = tl.load(keys_s + columns[:, None] * CHANNELS_S + channels, mask=a_key & of_student, other=0.0)
        s = tl.dot(anchor, key.T, s, input_precision=PRECISION)
        anchor = tl.load(anchors_t + rows[:, None] * CHANNELS_T + channels, mask=a_row & of_teacher, other=0.0)
        key = tl.load(keys_t + columns[:, None] * CHANNELS_T + channels, mask=a_key & of_teacher, other=0.0)
        t = tl.dot(anchor, key.T, t, input_precision=PRECISION)
    return s * scale, t * scale


@triton.jit
def _probabilities(similarities, logs):
    """Softmax in base 2. Past the edges of a block the exponent may be anything: bounded, it does not overflow."""
    return tl.exp2(tl.minimum(similarities - logs, 0.0))


@triton.jit
def _sums(
    anchors_s, anchors_t, keys_s, keys_t, logs_s, logs_t, divergences, row_count, column_count, images, scale,
    CHANNELS_S: tl.constexpr, CHANNELS_T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(row_count, ROWS)
    # Programs that run at once stream the same keys, so that these come from the cache.
    block, pair = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    first_row, first_key = pair % images * row_count, pair // images * column_count
    anchors_s += first_row * CHANNELS_S
    anchors_t += first_row * CHANNELS_T
    keys_s += first_key * CHANNELS_S
    keys_t += first_key * CHANNELS_T
    rows = block * ROWS + tl.arange(0, ROWS)
    max_s = tl.full((ROWS,), LOWEST, tl.float32)
    max_t = tl.full((ROWS,), LOWEST, tl.float32)
    sum_s = tl.zeros((ROWS,), tl.float32)
    sum_t = tl.zeros((ROWS,), tl.float32)
    cross = tl.zeros((ROWS,), tl.float32)
    # Flattened with the loop over channels, so that the next tile's loads run during this one's exponentials.
    for start in tl.range(0, column_count, COLUMNS, flatten=True):
        columns = start + tl.arange(0, COLUMNS)
        s, t = _similarities(
            anchors_s, anchors_t, keys_s, keys_t, rows, columns, row_count, column_count, scale,
            CHANNELS_S, CHANNELS_T, CHUNK, PRECISION,
        )  # fmt: skip
        inside = columns[None, :] < column_count
        s = tl.where(inside, s, LOWEST)
        t = tl.where(inside, t, LOWEST)
        new_s = tl.maximum(max_s, tl.max(s, axis=1))
        new_t = tl.maximum(max_t, tl.max(t, axis=1))
        s -= new_s[:, None]
        t -= new_t[:, None]
        step_s = max_s - new_s
        step_t = max_t - new_t
        shrink_t = tl.exp2(step_t)
        weights = tl.exp2(t)
        cross = (cross + sum_t * (step_t - step_s)) * shrink_t + tl.sum(weights * (t - s), axis=1)
        sum_s = sum_s * tl.exp2(step_s) + tl.sum(tl.exp2(s), axis=1)
        sum_t = sum_t * shrink_t + tl.sum(weights, axis=1)
        max_s = new_s
        max_t = new_t
    log_s = tl.log2(sum_s)
    log_t = tl.log2(sum_t)
    at, a_row = pair * row_count + rows, rows < row_count
    tl.store(logs_s + at, max_s + log_s, mask=a_row)
    tl.store(logs_t + at, max_t + log_t, mask=a_row)
    ln_2 = 0.6931471805599453
    tl.store(divergences + at, (cross / sum_t - log_t + log_s) * ln_2, mask=a_row)


# Without the list, maps of odd sizes would compile once per alignment of these.
@triton.jit(do_not_specialize_on_alignment=["row_logs_s", "row_logs_t", "column_logs_s", "column_logs_t"])
def _differences(
    anchors_s, anchors_t, keys_s, keys_t, row_logs_s, row_logs_t, column_logs_s, column_logs_t, output,
    row_count, column_count, stride, scale,
    CHANNELS_S: tl.constexpr, CHANNELS_T: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr, SYMMETRIC: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(row_count, ROWS)
    rows = tl.program_id(0) % blocks * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) // blocks * COLUMNS + tl.arange(0, COLUMNS)
    s, t = _similarities(
        anchors_s, anchors_t, keys_s, keys_t, rows, columns, row_count, column_count, scale,
        CHANNELS_S, CHANNELS_T, CHUNK, PRECISION,
    )  # fmt: skip
    a_row, a_column = rows < row_count, columns < column_count
    row_s = tl.load(row_logs_s + rows, mask=a_row, other=0.0)[:, None]
    row_t = tl.load(row_logs_t + rows, mask=a_row, other=0.0)[:, None]
    if SYMMETRIC:
        column_s = tl.load(column_logs_s + columns, mask=a_column, other=0.0)[None, :]
        column_t = tl.load(column_logs_t + columns, mask=a_column, other=0.0)[None, :]
        if PLAIN:
            # Exponentials are what tiles of few channels wait for: two here, four below.
            difference = tl.exp2(s) * (tl.exp2(-row_s) + tl.exp2(-column_s))
            difference -= tl.exp2(t) * (tl.exp2(-row_t) + tl.exp2(-column_t))
        else:
            difference = _probabilities(s, row_s) - _probabilities(t, row_t)
            difference += _probabilities(s, column_s) - _probabilities(t, column_t)
    else:
        difference = _probabilities(s, row_s) - _probabilities(t, row_t)
    at = rows[:, None] * stride + columns[None, :]
    tl.store(output + at, difference.to(output.dtype.element_ty), mask=a_row[:, None] & a_column[None, :])
