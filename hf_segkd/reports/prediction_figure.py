"""Images, labels and what models predict, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image
from torch.utils.data import Dataset, Subset

from hf_segkd.data import DatasetSpec
from hf_segkd.data.sampling import evenly_spread
from hf_segkd.evaluation.scoring import predictions
from hf_segkd.evaluation.segmenter import BaseSegmenter
from hf_segkd.reports.pictures import colorize, side_by_side, visible


def prediction_figure(
    segmenters: Mapping[str, BaseSegmenter],
    dataset: Dataset,
    spec: DatasetSpec,
    indices: Sequence[int] | None = None,
) -> Image.Image:
    """Images, labels and predictions side by side, with the classes' colors below.

    Args:
        segmenters (`dict[str, BaseSegmenter]`): By the title of their column.
        dataset (`torch.utils.data.Dataset`): As for [`~hf_segkd.evaluation.scoring.predictions`].
        spec (`DatasetSpec`): Palette, labels and ignore index.
        indices (`Sequence[int]`, *optional*): Which images; four, evenly spread over the dataset, by default.
    """
    if indices is None:
        indices = evenly_spread(len(dataset), 4)
    chosen = Subset(dataset, indices)
    rows: list[dict[str, Image.Image]] = [{} for _ in chosen]
    for title, segmenter in segmenters.items():
        names = segmenter.bands.names if segmenter.bands else ()
        for row, (image, labels, predicted) in zip(rows, predictions(segmenter, chosen), strict=True):
            row.setdefault("image", visible(image.permute(1, 2, 0).numpy(), names))
            row.setdefault("label", colorize(labels.cpu().numpy(), spec.palette))
            row[title] = colorize(predicted.cpu().numpy(), spec.palette)
    return side_by_side(rows, spec.labels, spec.palette)
