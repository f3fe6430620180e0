"""Released folders on other releases of transformers, each installed for the test: the table of docs/deployment.md.

`pytest -m slow tests/loading/test_transformers_versions.py -s` prints the rows.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import TESTS
from helpers.released import STUDENTS, save_students

pytestmark = pytest.mark.slow

# What each release wants in versions that differ from the installed ones.
OLD = ("huggingface-hub==0.36.0", "tokenizers==0.22.2")
EARLY = ("huggingface-hub==1.33.0", "tokenizers==0.22.2")
VERSIONS = {
    "4.57.6": OLD,
    "5.0.0": EARLY,
    "5.3.0": EARLY,
    "5.10.2": EARLY,
    "5.20.0": (),
    "5.23.0": (),
    "5.24.0": (),
}
# Between 5.4 and 5.20 AutoImageProcessor wants torchvision; the pipeline does not.
WITHOUT_AUTO_PROCESSOR = {"5.10.2"}
FILES = ["config.json", "model.safetensors", "modeling_segkd.py", "preprocessor_config.json"]


@pytest.fixture(scope="module")
def students(tmp_path_factory):
    folder = tmp_path_factory.mktemp("students")
    save_students(folder, STUDENTS)
    return folder


@pytest.fixture(params=VERSIONS)
def environment(request, tmp_path_factory):
    """Environment variables under which another release of transformers is imported, and its version."""
    version = request.param
    # Installed packages can be kept for the next time.
    kept = os.environ.get("HF_SEGKD_TRANSFORMERS")
    target = Path(kept) / version if kept else tmp_path_factory.mktemp(version)
    if not (target / "transformers").is_dir():
        packages = [f"transformers=={version}", *VERSIONS[version]]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
        subprocess.run([*pip, *packages], check=True)
    modules = tmp_path_factory.mktemp("modules")
    return {**os.environ, "PYTHONPATH": str(target), "HF_MODULES_CACHE": str(modules)}, version


def test_all_students_load_with_equal_logits(environment, students):
    """Strangers have the version that they have; an ImportError is all that they would see of the model."""
    variables, version = environment
    script = [sys.executable, TESTS / "helpers" / "load_released.py", students]
    result = subprocess.run(script, env=variables, capture_output=True, text=True, cwd=students)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert found.keys() == STUDENTS.keys()
    largest = max(row["difference"] for row in found.values())
    equal = sum(row["difference"] == 0 for row in found.values())
    print(f"\n| {version} | {equal} of {len(found)}, others up to {largest:.0e} |")
    for name, row in found.items():
        assert row["difference"] < 1e-5  # Swin and SegFormer are transformers' own code, which changed
        assert not any("not supported for" in complaint for complaint in row["complaints"]), name
        if version not in WITHOUT_AUTO_PROCESSOR:
            assert row["processor"] == "SegmentationImageProcessor"
            assert row["saved again"] == FILES, name
