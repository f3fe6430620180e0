"""Self-attention distillation of channels and positions, compared by kernel alignment."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hf_segkd.distributed import gather_with_gradient, world_size
from hf_segkd.losses.base import DistillationLoss, LossSetup, channel_projector, get_layer, resize_like
from hf_segkd.losses.functional.attention import attend
from hf_segkd.losses.functional.gram import gram
from hf_segkd.models.outputs import SegmentationOutput
from hf_segkd.values import check_positive, check_value

Term = Literal["cam", "pam"]
Comparison = Literal["cka", "mse"]
Projection = Literal["fixed", "resample", "learned"]


class CSKDLoss(DistillationLoss):
    """CSKD: maps refined by channel and by position attention agree with the teacher's.

    `cam`: `gamma A x + x` with `A = softmax(−x xᵀ / temperature)` between channels. `pam`: `gamma A v + x` with
    `A = softmax(q kᵀ / temperature)` between the positions of a patch, where q, k, v are 1×1 projections of x. Both
    are compared by `−log CKA`, the alignment of the models' B × B similarities of images. Each gamma starts at 0,
    learns, and serves both models.

    Args:
        setup (`LossSetup`): Shapes of both models' outputs; channel counts may differ.
        layer (`str`, *optional*, defaults to `"features"`): Field to compare.
        terms (`list[str]`, *optional*, defaults to `("cam", "pam")`): Which terms to compute and return.
        grid (`int`, *optional*, defaults to `5`): Patches per side for `pam`; 1 is the whole map.
        comparison (`str`, *optional*, defaults to `"cka"`): `"cka"`, or `"mse"` after a learned 1×1 projection of the
            student's map onto the teacher's channels.
        temperature (`float`, *optional*, defaults to `2.0`): Of both attentions, > 0. The original's scripts use 2.
        pam_projection (`str`, *optional*, defaults to `"fixed"`): q, k and v of `pam`: `"fixed"` draws them once from
            a constant seed, `"learned"` trains them, `"resample"` draws them for every patch of every step.
        gather (`bool`, *optional*, defaults to `False`): Whether CKA compares the images of all processes, so that
            1 or 2 on each are enough. Each process then holds the refined maps of all of them.

    Returns:
        `dict[str, torch.Tensor]`: The scalars named in `terms`. `cka` is in nats, from 0 (−1e-8, exactly) upwards.

    Raises:
        ValueError: If an option is unknown, or `gather` is set without `"cka"`; in `forward`, with `"cka"`, for fewer
            than 3 images on a device (with `gather`: on all): the alignment of two is always 1, of one 0/0.

    Differs from the original: it draws the projections of `pam` anew in every call (`"resample"`) and never trains
    them; attention is computed without keeping an N × N matrix; a query is at least 1 wide, so that fewer than 8
    channels work; a teacher map of another size is resized to the student's. As there, CKA compares the images of one
    device by default: then two processes with half the batch each do not train as one with the whole batch. With
    `gather` they do.

    Reference: CSKD's code, losses/sa.py; the attentions: Fu et al., Dual Attention Network for Scene Segmentation,
    CVPR 2019, https://huggingface.co/papers/1809.02983; CKA: Kornblith et al., Similarity of Neural Network
    Representations Revisited, ICML 2019, https://huggingface.co/papers/1905.00414
    """

    paper = "https://huggingface.co/papers/1809.02983"
    citation = """@inproceedings{fu2019dual,
  title={Dual Attention Network for Scene Segmentation},
  author={Fu, Jun and Liu, Jing and Tian, Haijie and Li, Yong and Bao, Yongjun and Fang, Zhiwei and Lu, Hanqing},
  booktitle={CVPR},
  year={2019}
}"""
    min_batch = 3
    time_growth = "BC²N + BN²C/25"
    memory_growth = "one patch"
    fused = True

    def __init__(
        self,
        setup: LossSetup,
        layer: str = "features",
        terms: tuple[Term, ...] = ("cam", "pam"),
        grid: int = 5,
        comparison: Comparison = "cka",
        temperature: float = 2.0,
        pam_projection: Projection = "fixed",
        gather: bool = False,
    ):
        super().__init__(setup, layer=layer)
        _check_options(terms, grid, comparison, temperature, pam_projection, gather)
        self.terms, self.grid, self.comparison, self.gather = tuple(terms), grid, comparison, gather
        self.temperature, self.pam_projection = temperature, pam_projection
        self.gammas = nn.ParameterDict({term: nn.Parameter(torch.zeros(1)) for term in self.terms})
        self.projector, student_channels = nn.Identity(), self.student_channels
        if comparison == "mse":
            self.projector = channel_projector(self.student_channels, self.teacher_channels, always=True)
            student_channels = self.teacher_channels
        if "pam" in self.terms and pam_projection != "resample":
            generator = torch.Generator().manual_seed(0)
            for whose, channels in (("student", student_channels), ("teacher", self.teacher_channels)):
                self._keep(f"{whose}_projection", draw_projection(torch.empty(0), channels, generator))

    def _keep(self, name: str, projection: Tensor) -> None:
        if self.pam_projection == "learned":
            self.register_parameter(name, nn.Parameter(projection))
        else:
            self.register_buffer(name, projection)

    def projection(self, whose: str, x: Tensor) -> Tensor:
        """Projection of `position_attention` for one patch `x` of the `"student"` or the `"teacher"`."""
        if self.pam_projection == "resample":
            return draw_projection(x, x.shape[1])
        return (self.student_projection if whose == "student" else self.teacher_projection).to(x.dtype)

    def forward(self, student: SegmentationOutput, teacher: SegmentationOutput, labels: Tensor) -> dict[str, Tensor]:
        student_map = self.projector(get_layer(student, self.layer))
        teacher_map = resize_like(get_layer(teacher, self.layer), student_map)
        self._check_images(len(student_map))
        values = {}
        if "cam" in self.terms:
            gamma = self.gammas["cam"]
            attended = [[channel_attention(x, gamma, self.temperature)] for x in (student_map, teacher_map)]
            values["cam"] = self.compare(*attended)
        if "pam" in self.terms:
            values["pam"] = self.compare(self.patches("student", student_map), self.patches("teacher", teacher_map))
        return values

    def compare(self, student_maps: list[Tensor], teacher_maps: list[Tensor]) -> Tensor:
        """Mean over pairs of maps (B, C, h, w) of their distance."""
        if self.gather:
            student_maps, teacher_maps = gather_maps(student_maps), gather_maps(teacher_maps)
        distance = cka_loss if self.comparison == "cka" else F.mse_loss
        return torch.stack([distance(s, t) for s, t in zip(student_maps, teacher_maps, strict=True)]).mean()

    def _check_images(self, images: int) -> None:
        if self.gather:
            images *= world_size()
        if self.comparison == "cka" and images < self.min_batch:
            where = "on all devices together" if self.gather else "on each device"
            raise ValueError(
                f"cskd: CKA compares the images of a batch and needs at least {self.min_batch} {where}, got "
                f"{images}: two images are always aligned perfectly and would teach nothing. Raise the batch size "
                "per device (not the accumulation steps), set gather: true with several devices, or comparison: mse."
            )

    def patches(self, whose: str, x: Tensor) -> list[Tensor]:
        """Patches of `x` (B, C, h, w), row by row, each after position attention. A small map has fewer than grid²."""
        pieces = [piece for rows in x.chunk(self.grid, dim=2) for piece in rows.chunk(self.grid, dim=3)]
        gamma = self.gammas["pam"]
        return [position_attention(p, self.projection(whose, p), gamma, self.temperature) for p in pieces]


def gather_maps(maps: list[Tensor]) -> list[Tensor]:
    """Maps (B, ...) of all processes, with gradient; flattened into one message, because a grid has 25 maps."""
    flat = [x.flatten(1) for x in maps]
    return list(gather_with_gradient(torch.cat(flat, dim=1)).split([x.shape[1] for x in flat], dim=1))


def channel_attention(x: Tensor, gamma: Tensor, temperature: float) -> Tensor:
    """`gamma softmax(−x xᵀ / temperature) x + x` for `x` (B, C, h, w): a channel attends to those unlike itself."""
    flat = x.flatten(2)
    # A C × C matrix is small; the fused kernels are made for many short vectors, not for few of h·w numbers.
    weights = (gram(flat) / -temperature).softmax(dim=-1)
    return gamma * (weights @ flat).view_as(x) + x


def position_attention(x: Tensor, projection: Tensor, gamma: Tensor, temperature: float) -> Tensor:
    """`gamma softmax(q kᵀ / temperature) v + x` between the positions of `x` (B, C, h, w).

    `projection` (2 max(1, C // 8) + C, C + 1) stacks the weights of q, k and v; its last column holds the biases.
    """
    width = query_width(x.shape[1])
    projected = projection[:, :-1] @ x.flatten(2) + projection[:, -1:]
    query, key, value = projected.split([width, width, x.shape[1]], dim=1)
    return gamma * attend(query, key, value, scale=1 / temperature).view_as(x) + x


def query_width(channels: int) -> int:
    return max(1, channels // 8)


def draw_projection(like: Tensor, channels: int, generator: torch.Generator | None = None) -> Tensor:
    """Weights and biases as PyTorch initializes three 1×1 convolutions: uniform within ±1/√channels."""
    rows, bound = 2 * query_width(channels) + channels, channels**-0.5
    return like.new_empty(rows, channels + 1).uniform_(-bound, bound, generator=generator)


def cka_loss(x: Tensor, y: Tensor) -> Tensor:
    """`−log(CKA + 1e-8)` of two maps with the same B images: 0 when their images resemble each other alike."""
    x, y = (F.normalize(_gram(z.flatten(1)).flatten(), dim=0) for z in (x, y))
    return -((x * y).sum().abs() + 1e-8).log()


def _gram(x: Tensor) -> Tensor:
    x = x - x.mean(dim=0)
    return x @ x.T


def _check_options(terms, grid: int, comparison: str, temperature: float, pam_projection: str, gather: bool) -> None:
    check_value("cskd: terms", terms, tuple[Term, ...])
    if not terms:
        raise ValueError("cskd: terms must name at least one of 'cam' and 'pam', got none.")
    if isinstance(grid, bool) or not isinstance(grid, int) or grid < 1:
        raise ValueError(f"cskd: grid must be a positive number of patches per side, got {grid!r}.")
    check_value("cskd: comparison", comparison, Comparison)
    check_positive("cskd: temperature", temperature)
    check_value("cskd: pam_projection", pam_projection, Projection)
    if gather and comparison != "cka":
        raise ValueError("cskd: gather serves CKA, which compares images. Leave it out with comparison: mse.")
