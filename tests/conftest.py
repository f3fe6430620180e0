"""Fixtures of all tests."""

import os
import tempfile

# Before any Hugging Face import: no network, and no trace in the user's cache.
_CACHE = tempfile.TemporaryDirectory(prefix="hf_segkd_tests_")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=_CACHE.name)

import pytest
import torch

from helpers.commands import recipe
from helpers.paths import SHARED, TESTS
from helpers.tiny import LABELS, TINY
from hf_segkd.commands import distill
from hf_segkd.loading.any_model import load_model

# Files whose tests start processes or train several runs: `make test-fast` leaves them out.
INTEGRATION = (
    *("commands/", "hub/", "conversion/test_conversion.py", "dataset_builders/test_builders.py"),
    *(
        "evaluation/test_evaluation.py",
        "deployment/",
        "reports/",
        "house/test_docs.py",
        "house/test_benchmarks.py",
        "house/test_extensions.py",
    ),
    *("loading/test_loading.py", "losses/test_memory.py", "losses/test_similarity_triton.py"),
    *("data/test_transforms.py", "training/"),
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.relative_to(TESTS).as_posix().startswith(INTEGRATION):
            item.add_marker("integration")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order: bit-exact comparisons must not depend on the machine's cores."""
    torch.set_num_threads(int(os.environ.get("HF_SEGKD_TEST_THREADS", "1")))


@pytest.fixture
def camvid():
    if not (SHARED / "camvid").is_dir():
        pytest.skip("needs the CamVid folder beside the repository: ../shared/camvid")
    return SHARED / "camvid"


@pytest.fixture
def tiny_student():
    torch.manual_seed(0)
    return load_model(TINY, id2label=LABELS)[0]


@pytest.fixture
def tiny_teacher():
    torch.manual_seed(1)
    return load_model({**TINY, "hidden_sizes": [4, 10, 15], "use_decoder": True}, id2label=LABELS)[0]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Folder of a finished run, whose student is the teacher of other runs."""
    folder = tmp_path_factory.mktemp("teacher")
    student = {**TINY, "hidden_sizes": [4, 10, 15], "use_decoder": True}
    distill.main([recipe(folder, student=student), "--output_dir", str(folder / "run")])
    return str(folder / "run")
