"""Pascal VOC 2012 with the extra annotations of SBD: 21 classes, 10582 / 1449 images.

python dataset_builders/voc_aug.py --data_dir VOCdevkit/VOC2012 --output voc_aug_prepared
"""

from dataset_builders.files import Part, examples, list_parts, match, read_lines
from dataset_builders.pair_builder import PairBuilder
from hf_segkd.data.colors import bit_color
from hf_segkd.data.label_map import LabelMap
from hf_segkd.data.specs import DatasetSpec

_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)

CLASSES = {name: bit_color(index) for index, name in enumerate(_NAMES.split())}

SPEC = DatasetSpec(
    name="voc_aug",
    labels=tuple(CLASSES),
    palette=tuple(CLASSES.values()),
    test_split=None,  # nobody has the test labels: papers score the validation split
    license="PASCAL VOC 2012 and SBD: images under Flickr's terms of use; annotations without explicit license.",
    link="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
)

TRAIN_LISTS, VALIDATION_LISTS = ("train_aug.txt", "trainaug.txt"), ("val.txt",)


class VocAug(PairBuilder):
    """Reads `JPEGImages/`, `SegmentationClassAug/`, `SegmentationClass/` and the lists of images below `data_dir`.

    Lists (`train_aug.txt` or `trainaug.txt`, and `val.txt`) are searched in `ImageSets/Segmentation/`, `list/` and
    `data_dir` itself; a line holds a name, or the paths of image and annotation. Without a train list, the train
    images are those of `SegmentationClassAug/` that the validation list does not name, which is how the published
    list came about. Training uses the annotations of SBD, validation those of VOC. Both palette and gray PNGs are read
    as indices.

    Reference: Hariharan et al., Semantic Contours from Inverse Detectors, ICCV 2011.
    """

    SPEC = SPEC
    TITLE = "Pascal VOC Aug"
    PAGE = (
        "Get VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ and unpack it; "
        "SegmentationClassAug is the SBD data (http://home.bharathh.info/pubs/codes/SBD/download.html) as PNGs."
    )
    PARTS = (
        Part(("JPEGImages",)),
        Part(("SegmentationClassAug",), "SegmentationClassAug.zip"),
        Part(("SegmentationClass",)),
    )
    COUNTS = {"train": 10582, "validation": 1449}

    @classmethod
    def label_map(cls, config):
        ids = {train_id: train_id for train_id in range(cls.SPEC.num_labels)}
        advice = "Use class annotations, saved as palette or gray PNG."
        return LabelMap(ids | {255: 255}, "0 to 20 and 255", advice)

    @classmethod
    def find_pairs(cls, data_dir, config):
        found = list_parts(data_dir, cls.PARTS, cls.TITLE, cls.PAGE)
        images = match(found, r"JPEGImages/([^/]+)\.jpg")
        extra = match(found, r"SegmentationClassAug/([^/]+)\.png")
        official = match(found, r"SegmentationClass/([^/]+)\.png")
        validation = _listed(data_dir, VALIDATION_LISTS)
        if validation is None:
            wanted = f"ImageSets/Segmentation/{VALIDATION_LISTS[0]}"
            raise ValueError(f"{cls.TITLE} in {data_dir} lacks {wanted}, the validation images. {cls.PAGE}")
        train = _listed(data_dir, TRAIN_LISTS)
        if train is None:
            train = sorted(extra.keys() - set(validation))
        return {
            "train": cls._pick("train", train, images, extra, "SegmentationClassAug"),
            "validation": cls._pick("validation", validation, images, official, "SegmentationClass"),
        }

    @classmethod
    def _pick(cls, split, names, images, annotations, folder):
        for held, where in ((images, "JPEGImages"), (annotations, folder)):
            lacking = set(names) - held.keys()
            if lacking:
                raise ValueError(
                    f"{len(lacking)} of {len(names)} {split} images are missing in {where}: {examples(lacking)}. "
                    f"The download of {cls.TITLE} is incomplete. {cls.PAGE}"
                )
        return [(images[name], annotations[name]) for name in names]


def _listed(data_dir: str, lists: tuple[str, ...]) -> list[str] | None:
    """Names in the first list that exists, in its order; `None` when there is none."""
    for folder in ("ImageSets/Segmentation", "list", "."):
        for name in lists:
            lines = read_lines(data_dir, folder, name)
            if lines is not None:
                return [line.split()[0].rsplit("/", 1)[-1].removesuffix(".jpg") for line in lines]
    return None


if __name__ == "__main__":
    from dataset_builders.prepare import main

    main("voc_aug", __doc__)
