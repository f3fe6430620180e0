"""Facts about each dataset that builder, model config, metric and pictures must share."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetSpec:
    """Names, colours and splits of one dataset.

    Every dataset has the columns `image` (RGB), `annotation` (train ids, `ignore_index`: unlabelled) and `image_id`.

    Args:
        name (`str`): Name used in recipes and on the command line.
        labels (`tuple[str, ...]`): Class names; the position is the train id.
        palette (`tuple[tuple[int, int, int], ...]`): RGB colour of each class, 0 to 255.
        ignore_index (`int`, *optional*, defaults to `255`): Annotation value of pixels that count nowhere.
        train_split (`str`, *optional*, defaults to `"train"`): Split to train on.
        eval_split (`str`, *optional*, defaults to `"validation"`): Split to choose checkpoints on.
        test_split (`str`, *optional*, defaults to `"test"`): Split of reported numbers, `None` if unlabelled.

    Raises:
        `ValueError`: If the number of colours differs from the number of names.
    """

    name: str
    labels: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int = 255
    train_split: str = "train"
    eval_split: str = "validation"
    test_split: str | None = "test"

    def __post_init__(self):
        if len(self.labels) != len(self.palette):
            raise ValueError(
                f"Dataset '{self.name}' has {len(self.labels)} labels and {len(self.palette)} colours. "
                "Give one RGB colour per label."
            )

    @property
    def num_labels(self) -> int:
        return len(self.labels)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.labels))

    @property
    def label2id(self) -> dict[str, int]:
        return {label: index for index, label in enumerate(self.labels)}


# Colours of SegNet, which published this 11-class version of CamVid.
_CAMVID = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}

_SYNTHETIC = {
    "sky": (70, 130, 180),
    "building": (90, 70, 70),
    "road": (128, 64, 128),
    "pavement": (244, 35, 232),
    "tree": (60, 150, 40),
    "pole": (170, 170, 170),
    "sign": (230, 220, 0),
    "car": (0, 40, 160),
    "person": (220, 20, 60),
    "marking": (255, 255, 255),
}

DATASETS: dict[str, DatasetSpec] = {
    "camvid": DatasetSpec("camvid", tuple(_CAMVID), tuple(_CAMVID.values())),
    "synthetic": DatasetSpec("synthetic", tuple(_SYNTHETIC), tuple(_SYNTHETIC.values())),
}
