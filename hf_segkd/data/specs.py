"""Facts about each dataset that builder, model config, metric and pictures must share."""

from dataclasses import dataclass

from hf_segkd.data.labels import ADE20K, CAMVID, CITYSCAPES, COCO_STUFF, VOC


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


def _spec(name: str, classes: dict[str, tuple[int, int, int]], test_split: str | None = "test") -> DatasetSpec:
    return DatasetSpec(name, tuple(classes), tuple(classes.values()), test_split=test_split)


# The four without a test split are scored on their validation split in the papers: nobody has the test labels.
DATASETS: dict[str, DatasetSpec] = {
    "ade20k": _spec("ade20k", ADE20K, test_split=None),
    "camvid": _spec("camvid", CAMVID),
    "cityscapes": _spec("cityscapes", CITYSCAPES, test_split=None),
    "coco_stuff_164k": _spec("coco_stuff_164k", COCO_STUFF, test_split=None),
    "synthetic": _spec("synthetic", _SYNTHETIC),
    "voc_aug": _spec("voc_aug", VOC, test_split=None),
}
