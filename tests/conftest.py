"""Fixtures of all tests."""

import gc
import os
import tempfile

# Before any Hugging Face import: no network, and no trace in the user's cache.
_CACHE = tempfile.TemporaryDirectory(prefix="hf_segkd_tests_")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_CACHE=_CACHE.name)

import datasets
import pytest
import torch

from helpers.commands import recipe
from helpers.paths import SHARED, TESTS
from helpers.tiny import LABELS, TINY
from helpers.versions import reason_to_skip
from hf_segkd.commands import distill
from hf_segkd.loading.any_model import load_model
from hf_segkd.reports import run_folder

# Files whose tests start processes, train several runs or build large networks: `make test-fast` does not read them.
INTEGRATION = (
    *("commands/", "conversion/", "deployment/", "hub/", "loading/", "reports/", "training/"),
    *("data/test_transforms.py", "evaluation/test_evaluation.py", "evaluation/test_teacher.py"),
    *("dataset_builders/test_builders.py", "dataset_builders/test_cases.py", "dataset_builders/test_completeness.py"),
    *("house/test_benchmarks.py", "house/test_docs.py", "house/test_extensions.py", "house/test_trajectories.py"),
    *("losses/test_adversarial.py", "losses/test_memory.py", "losses/test_similarity_triton.py"),
    *(
        "models/test_espnetv2.py",
        "models/test_models.py",
        "models/test_released_code.py",
        "models/test_torch_export.py",
    ),
    *("dataset_builders/test_builders_details.py", "recipes/test_published_rows.py"),
)


def is_integration(path):
    return path.relative_to(TESTS).as_posix().startswith(INTEGRATION)


def pytest_ignore_collect(collection_path, config):
    """Files that would be deselected are not even imported."""
    without = "not integration" in config.option.markexpr
    return True if without and collection_path.is_file() and is_integration(collection_path) else None


def pytest_collection_modifyitems(items):
    for item in items:
        if is_integration(item.path):
            item.add_marker("integration")
        if reason := reason_to_skip(item.nodeid):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order: bit-exact comparisons must not depend on the machine's cores."""
    torch.set_num_threads(int(os.environ.get("HF_SEGKD_TEST_THREADS", "1")))


@pytest.fixture(autouse=True, scope="session")
def short_waits():
    """Libraries wait five seconds for the threads and processes of a stream or loader that a test leaves unread."""
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 0.1


@pytest.fixture(autouse=True, scope="module")
def no_garbage_in_libraries():
    """Trainer collects garbage before it trains, each time through all objects of the imported libraries."""
    gc.collect()
    gc.freeze()


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


def leave_out_figures(patch: pytest.MonkeyPatch) -> None:
    for name in ("write_figures", "write_class_figure", "write_curves"):
        patch.setattr(run_folder, name, lambda *args: None)


@pytest.fixture
def without_figures(monkeypatch):
    """Runs draw none: that takes as long as a short training, and other tests look at them."""
    leave_out_figures(monkeypatch)


@pytest.fixture(scope="module")
def module_without_figures():
    """The same for a module's own fixtures."""
    with pytest.MonkeyPatch.context() as patch:
        leave_out_figures(patch)
        yield


@pytest.fixture(scope="session")
def teacher(tmp_path_factory):
    """Folder of a finished run, whose student is the teacher of other runs. Nobody writes to it."""
    folder = tmp_path_factory.mktemp("teacher")
    student = {**TINY, "hidden_sizes": [4, 10, 15], "use_decoder": True}
    with pytest.MonkeyPatch.context() as patch:
        leave_out_figures(patch)
        distill.main([recipe(folder, student=student), "--output_dir", str(folder / "run")])
    return str(folder / "run")
