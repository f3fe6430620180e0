"""Mean IoU as an `evaluate` metric. Importing `evaluate` takes seconds: import this file lazily."""

from collections.abc import Iterable
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor

from hf_segkd.evaluation.confusion import confusion_matrix, scores

if not hasattr(evaluate, "Metric"):
    raise ImportError(
        f"`import evaluate` found {evaluate.__file__} instead of the package of that name. "
        "Run Python from a folder without an evaluate.py of its own."
    )


class MeanIoU(evaluate.Metric):
    """Mean IoU from a streamed int64 confusion matrix: memory does not grow with the number of images.

    Same five keys and values as `evaluate`'s `mean_iou`, plus `mean_iou_all`, the mean over all classes with absent
    ones counted as 0, as the code of the distillation papers has it, and Dice.

    Args:
        num_labels (`int`): Number of classes K.
        ignore_index (`int`, *optional*, defaults to `255`): Reference value of pixels that count nowhere.
        id2label (`dict[int, str]`, *optional*): Class names; results then also hold `iou_<name>` of each class.

    Raises:
        `ValueError`: If the number of names differs from `num_labels`, or a counted pixel is outside 0 to K - 1.
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, id2label: dict[int, str] | None = None, **kwargs):
        if id2label is not None and sorted(id2label) != list(range(num_labels)):
            raise ValueError(
                f"id2label has the keys {sorted(id2label)}, expected 0 to {num_labels - 1}. "
                "Pass the id2label of the dataset, or leave it out."
            )
        self.num_labels, self.ignore_index = num_labels, ignore_index
        self.id2label = id2label or {}
        self._reset()
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Image(), "references": datasets.Image()})
        return evaluate.MetricInfo(description=self.__doc__, citation="", inputs_description="", features=features)

    def _build_data_dir(self) -> str:
        # The base class creates a cache folder here; nothing is ever written, so a read-only home must not matter.
        return self._data_dir_root

    def _reset(self) -> None:
        self._matrix = torch.zeros(self.num_labels, self.num_labels, dtype=torch.int64)
        self._is_empty = True

    @property
    def confusion_matrix(self) -> Tensor:
        """Counts so far, int64 (K, K) on the CPU, rows = reference, columns = prediction."""
        return self._matrix.clone()

    def add_matrix(self, matrix: Tensor) -> None:
        """Add a confusion matrix (K, K), for instance one summed over processes."""
        if matrix.shape != self._matrix.shape or matrix.is_floating_point():
            raise ValueError(
                f"Expected an integer matrix of shape {tuple(self._matrix.shape)}, got {tuple(matrix.shape)} of type "
                f"{matrix.dtype}. Make it with hf_segkd.evaluation.confusion.confusion_matrix."
            )
        self._matrix += matrix.to(self._matrix)
        self._is_empty = False

    def add_batch(self, *, predictions: Iterable | None = None, references: Iterable | None = None, **kwargs) -> None:
        """Add images: two (B, H, W) tensors or arrays, or two equally long lists of maps, each of any size."""
        if kwargs:
            raise ValueError(f"Unknown inputs {sorted(kwargs)}. Pass predictions and references only.")
        if predictions is None or references is None or len(predictions) != len(references):
            raise ValueError("Pass as many predictions as references.")
        for prediction, reference in zip(predictions, references, strict=True):
            pair = _as_tensor(prediction), _as_tensor(reference)
            self.add_matrix(confusion_matrix(*pair, self.num_labels, self.ignore_index))

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs) -> None:
        """Add one image: two (H, W) maps of class ids."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def compute(
        self, *, predictions: Iterable | None = None, references: Iterable | None = None, **kwargs
    ) -> dict[str, Any]:
        """Scores of everything added so far ([`hf_segkd.evaluation.confusion.scores`]); then starts from zero."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references, **kwargs)
        if self._is_empty:
            raise ValueError("No image was added. Call add_batch or add_matrix before compute, or pass both inputs.")
        result = scores(self._matrix)
        self._reset()
        per_class = {f"iou_{name}": float(result["per_category_iou"][index]) for index, name in self.id2label.items()}
        return result | per_class


def _as_tensor(labels: Any) -> Tensor:
    return labels if isinstance(labels, Tensor) else torch.from_numpy(np.array(labels))
