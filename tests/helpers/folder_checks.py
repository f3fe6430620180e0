"""The check of a folder of images and masks."""

import pytest

from dataset_builders import open_dataset
from helpers.own_photos import NAMES
from hf_segkd.training.checks import check_data


def check(root, how="sample", skip_unreadable=False, **options) -> list[int]:
    options = {"labels": NAMES, **options}
    return check_data(open_dataset("folder", str(root), **options), how, skip_unreadable)


def refusal(root, **options) -> str:
    with pytest.raises(ValueError) as refused:
        check(root, **options)
    return str(refused.value)
