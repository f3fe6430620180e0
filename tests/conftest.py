"""Small models and data that several tests share."""

import os
import tempfile

from helpers.tiny import LABELS, TINY

# Before any Hugging Face import: no network, and no trace in the user's cache.
_CACHE = tempfile.TemporaryDirectory(prefix="hf_segkd_tests_")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=_CACHE.name)

import pytest
import torch

from hf_segkd.loading.pretrained import load_segmenter


@pytest.fixture
def tiny_student():
    torch.manual_seed(0)
    return load_segmenter(TINY, id2label=LABELS)


@pytest.fixture
def tiny_teacher():
    torch.manual_seed(1)
    return load_segmenter({**TINY, "hidden_sizes": [4, 10, 15], "use_decoder": True}, id2label=LABELS)
