"""Features of single pixels, and their t-SNE map: do the classes separate, in the student as in the teacher?"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hf_segkd.data.transforms import collate
from hf_segkd.evaluation.segmenter import Segmenter


@torch.inference_mode()
def pixel_embeddings(
    segmenter: Segmenter,
    dataset: Dataset,
    per_class: int = 10,
    num_labels: int | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Features of randomly chosen labeled pixels; the same pixels for every model.

    Args:
        segmenter ([`~hf_segkd.evaluation.segmenter.Segmenter`]): Its model returns `features`; they are read
            bilinearly at the pixel's place.
        dataset (`torch.utils.data.Dataset`): Items with uint8 RGB `pixel_values` (3, H, W) and `labels` (H, W).
        per_class (`int`, *optional*, defaults to `10`): Pixels of each class taken from each image, where it has them.
        num_labels (`int`, *optional*): Labels from here on are ignored; the model's number of classes by default.
        seed (`int`, *optional*, defaults to `0`): Seed of the choice.

    Returns:
        `tuple[Tensor, Tensor]`: float32 (P, C) of unit length, as the relational losses compare them, and int64 (P,)
        class ids.

    Raises:
        ValueError: If the model has no features, or no pixel is labeled.
    """
    num_labels = num_labels or segmenter.num_labels
    generator = torch.Generator().manual_seed(seed)
    vectors, classes = [], []
    for batch in DataLoader(dataset, batch_size=1, collate_fn=collate):
        places, ids = _choose(batch["labels"][0], per_class, num_labels, generator)
        features = segmenter.model(pixel_values=segmenter.normalize(batch["pixel_values"])).features
        if features is None:
            raise ValueError(
                f"{type(segmenter.model).__name__} returns no features. "
                "Name where they are: expose_features(model, module)."
            )
        read = F.grid_sample(features.float().cpu(), places[None, None], padding_mode="border", align_corners=False)
        vectors.append(F.normalize(read[0, :, 0].T, dim=1))
        classes.append(ids)
    if not sum(map(len, classes)):
        raise ValueError("None of these images has a labeled pixel. Choose a split with labels.")
    return torch.cat(vectors), torch.cat(classes)


def _choose(labels: Tensor, per_class: int, num_labels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places (P, 2) as x, y in [-1, 1] and classes (P,) of up to `per_class` pixels of each class."""
    chosen = []
    for label in labels.unique().tolist():
        if 0 <= label < num_labels:
            found = (labels == label).flatten().nonzero()[:, 0]
            chosen.append(found[torch.randperm(len(found), generator=generator)[:per_class]])
    index = torch.cat([*chosen, labels.new_empty(0)]).long()
    height, width = labels.shape
    places = torch.stack([index % width * 2 + 1, index // width * 2 + 1], dim=1).float()
    return places / torch.tensor([width, height]) - 1, labels.flatten()[index].long()


def tsne(vectors: Tensor, seed: int = 0, perplexity: float = 30.0) -> np.ndarray:
    """Map vectors (P, C) to the plane, (P, 2), with scikit-learn's t-SNE.

    Raises:
        ImportError: Without scikit-learn.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError("t-SNE needs scikit-learn. Install it with: pip install hf-segkd[figures]") from error
    perplexity = min(perplexity, max(1.0, (len(vectors) - 1) / 3))
    return TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(vectors.numpy())
