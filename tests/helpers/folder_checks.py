"""The check of a folder of images and masks."""

import pytest

import dataset_builders
from helpers.own_photos import NAMES
from hf_segkd.training.checks import check_data


def check(root, how="sample", skip_unreadable=False, **options) -> list[int]:
    options = {"labels": NAMES, **options}
    splits, raw_ids = dataset_builders.raw_splits("folder", str(root), **options)
    spec = dataset_builders.dataset_spec("folder", str(root), **options)
    return check_data(splits, raw_ids, spec, how, skip_unreadable)


def refusal(root, **options) -> str:
    with pytest.raises(ValueError) as refused:
        check(root, **options)
    return str(refused.value)
