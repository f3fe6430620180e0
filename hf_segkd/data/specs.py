"""Facts about each dataset that builder, model config, metric and pictures must share."""

from dataclasses import dataclass

UNKNOWN_LICENSE = "The data's license is not known to hf_segkd: ask whoever made it before you pass on the model."


@dataclass(frozen=True)
class DatasetSpec:
    """Names, colors and splits of one dataset.

    Every dataset has the columns `image` (RGB), `annotation` (train ids, `ignore_index`: unlabeled) and `image_id`.

    Args:
        name (`str`): Name used in recipes and on the command line.
        labels (`tuple[str, ...]`): Class names; the position is the train id.
        palette (`tuple[tuple[int, int, int], ...]`): RGB color of each class, 0 to 255.
        ignore_index (`int`, *optional*, defaults to `255`): Annotation value of pixels that count nowhere.
        train_split (`str`, *optional*, defaults to `"train"`): Split to train on.
        eval_split (`str`, *optional*, defaults to `"validation"`): Split to choose checkpoints on.
        test_split (`str`, *optional*, defaults to `"test"`): Split of reported numbers, `None` if unlabeled.
        license (`str`, *optional*): One sentence on what the data may be used for; model cards print it.
        link (`str`, *optional*): Page of the dataset.
        hub_id (`str`, *optional*): Its `"owner/name"` among the Hub's datasets; model cards link it.

    Raises:
        `ValueError`: If the number of colors differs from the number of names.
    """

    name: str
    labels: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore_index: int = 255
    train_split: str = "train"
    eval_split: str = "validation"
    test_split: str | None = "test"
    license: str = UNKNOWN_LICENSE
    link: str | None = None
    hub_id: str | None = None

    def __post_init__(self):
        if len(self.labels) != len(self.palette):
            raise ValueError(
                f"Dataset '{self.name}' has {len(self.labels)} labels and {len(self.palette)} colors. "
                "Give one RGB color per label."
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
