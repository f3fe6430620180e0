"""The builders by the names that go on a command line; importing one takes a second, so that this table does not."""

import importlib

BUILDERS: dict[str, str] = {
    "ade20k": "dataset_builders.ade20k:ADE20K",
    "camvid": "dataset_builders.camvid:CamVid",
    "cityscapes": "dataset_builders.cityscapes:Cityscapes",
    "coco_stuff_164k": "dataset_builders.coco_stuff_164k:CocoStuff164k",
    "folder": "dataset_builders.folder:Folder",
    "synthetic": "dataset_builders.synthetic:Synthetic",
    "voc_aug": "dataset_builders.voc_aug:VocAug",
}


def builder_class(name: str) -> type:
    """The `datasets.GeneratorBasedBuilder` of that name, a key of [`BUILDERS`]."""
    module, class_name = BUILDERS[name].split(":")
    return getattr(importlib.import_module(module), class_name)
