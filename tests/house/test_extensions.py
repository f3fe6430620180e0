"""A loss, a backbone and a dataset are added to a copy of the package by the steps that docs/contributing.md names."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from helpers.extension_files import ADDITIONS, RECIPES
from helpers.paths import ROOT, TESTS

CONTRACT = "loss and logit_mse and not has_a_test_of_its_own"


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the package with three additions: for each its file, one line, and for two of them a recipe."""
    root = tmp_path_factory.mktemp("extended")
    for package in ("hf_segkd", "dataset_builders"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for file, text, table, before, line in ADDITIONS.values():
        (root / file).write_text(text)
        content = (root / table).read_text()
        assert content.count(before) == 1
        (root / table).write_text(content.replace(before, line + before))
    for file, text in RECIPES.items():
        (root / file).write_text(text)
    return root


@pytest.mark.parametrize("kind", ADDITIONS)
def test_the_page_names_the_file_and_the_line_of_each_step(kind):
    """A step that the page words otherwise is a step that nobody has tried."""
    _, _, table, _, line = ADDITIONS[kind]
    for own, general in (
        ("toy_backbone", "NAME"),
        ("logit_mse", "NAME"),
        ("leaves", "NAME"),
        ("LogitMSE", "Name"),
        ("Toy", "Name"),
        ("Leaves", "Name"),
    ):
        line = line.replace(own, general)
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    assert any(f"in `{table}`" in row and f"the line `{line.strip()}`" in row for row in page.splitlines()), line


def run(root, *arguments) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{root}:{TESTS}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *map(str, arguments)]
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def test_an_added_loss_is_held_to_the_contract_of_all(extended):
    """A loss that escapes the contract tests is a loss that nobody has tested."""
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        ROOT,
        "-c",
        ROOT / "setup.cfg",
        "-o",
        f"pythonpath={TESTS}",
    ]
    printed = run(extended, "pytest", *options, TESTS / "losses" / "test_losses.py", "-k", CONTRACT)
    passed = int(printed.split(" passed")[0].split()[-1])
    assert passed >= 6


@pytest.mark.slow
def test_the_three_train_together_by_their_names(extended, tmp_path):
    """What needs a further place would fail here, or not be found by its name."""
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        (tmp_path / "leaves" / split).mkdir(parents=True)
        for index in range(count):
            picture = random.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / "leaves" / split / f"{index}.png")
            Image.fromarray(picture[..., 0] // 128).save(tmp_path / "leaves" / split / f"{index}_mask.png")
    student = "{model_type: pspnet, backbone: toy, hidden_size: 8, auxiliary_hidden_size: 8}"
    common = ["--data_dir", tmp_path / "leaves", "--max_steps", "2", "--use_cpu", "--student", student]
    common += ["--per_device_train_batch_size", "4"]
    run(extended, "hf_segkd", "distill", "leaves", "baseline", *common, "--output_dir", tmp_path / "teacher")
    teacher = ["--teacher", tmp_path / "teacher"]
    run(extended, "hf_segkd", "distill", "leaves", "logit_mse", *common, *teacher, "--output_dir", tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "metrics.json", "README.md", "modeling_segkd.py"} <= files
    assert "class ToyBackbone" in (tmp_path / "out" / "modeling_segkd.py").read_text()
    assert "CC0" in (tmp_path / "out" / "README.md").read_text()
    assert "logit_mse" in run(extended, "hf_segkd", "recipes", "logit_mse")
