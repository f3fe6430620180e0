"""ADE20K SceneParse150: 150 classes, 20210 / 2000 images.

python dataset_builders/ade20k.py --data_dir ADEChallengeData2016 --output ade20k_prepared
"""

from dataset_builders.files import Part
from dataset_builders.pair_builder import PairBuilder
from hf_segkd.data.label_map import LabelMap
from hf_segkd.data.specs import DATASETS


class ADE20K(PairBuilder):
    """Reads `images/` and `annotations/`, or `ADEChallengeData2016.zip`, below `data_dir`.

    The split is that of the file names (`ADE_train_*`, `ADE_val_*`). Raw values 1 to 150 become 0 to 149; 0, which is
    "none of the classes", is ignored.

    Reference: Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017, https://huggingface.co/papers/1608.05442
    """

    SPEC = DATASETS["ade20k"]
    TITLE = "ADE20K (SceneParse150)"
    PAGE = "Get ADEChallengeData2016.zip from http://sceneparsing.csail.mit.edu/."
    # sampleData/ is where the repository of the challenge keeps its three examples.
    PARTS = tuple(Part((name, f"sampleData/{name}"), "ADEChallengeData2016.zip") for name in ("images", "annotations"))
    LAYOUT = {
        "train": (r"images/(?:.*/)?(ADE_train_\d+)\.jpg", r"annotations/(?:.*/)?(ADE_train_\d+)\.png"),
        "validation": (r"images/(?:.*/)?(ADE_val_\d+)\.jpg", r"annotations/(?:.*/)?(ADE_val_\d+)\.png"),
    }
    COUNTS = {"train": 20210, "validation": 2000}

    @classmethod
    def label_map(cls, config):
        ids = {train_id + 1: train_id for train_id in range(cls.SPEC.num_labels)}
        advice = "Use the annotations of SceneParse150, not those of the full ADE20K."
        return LabelMap({0: 255} | ids, "0 (ignored) and 1 to 150", advice)


if __name__ == "__main__":
    from dataset_builders.prepare import main

    main("ade20k", __doc__)
