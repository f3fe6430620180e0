"""The library as `pip install` gives it: a wheel, outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from helpers.paths import ROOT

SCENES = "{num_train: 8, num_validation: 3, num_test: 2, height: 32, width: 48}"
SHORT = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--crop_size", "32", "32", "--use_cpu"]
PARTS = ("hf_segkd", "dataset_builders", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A function that runs a program of a fresh environment, elsewhere; our dependencies are shared with it."""
    pytest.importorskip("setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / "source" / part)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*words: str) -> str:
        result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{words}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        return result.stdout + result.stderr

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "./source")
    run(sys.executable, "-m", "venv", "--without-pip", "venv")
    (wheel,) = (folder / "dist").glob("*.whl")
    run(*pip, "--python", "venv/bin/python", "install", "--no-deps", str(wheel))
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A folder in a .pth file is searched, but its own .pth files, an editable install of the checkout, are not read.
    (packages / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return lambda program, *words: run(f"venv/bin/{program}", *words), folder


@pytest.mark.slow
def test_installed_wheel_trains_evaluates_predicts_and_exports(installed):
    """Package data or a module that the wheel lacks is seen by nobody who works in the checkout."""
    run, folder = installed
    where = run(
        "python", "-c", "import hf_segkd, dataset_builders; print(hf_segkd.__file__, dataset_builders.__file__)"
    )
    assert all(Path(path).is_relative_to(folder / "venv") for path in where.split())
    assert "kd_cwd  Pixel-wise KD" in run("hf-segkd", "recipes", "kd_cwd")
    recipes = ("synthetic", "synthetic", "baseline")
    run("hf-segkd", "distill", *recipes, "--dataset_config", SCENES, *SHORT, "--output_dir", "run")
    data = ("--dataset", "synthetic", "--dataset_config", SCENES, "--device", "cpu")
    run("hf-segkd", "evaluate", "run", *data, "--output_dir", "scores")
    run("hf-segkd", "predict", "run", "run/figures/sample.png", "--device", "cpu", "--output_dir", "maps")
    run("hf-segkd", "export", "run", "--output_dir", "onnx")
    for file in ("run/model.safetensors", "run/README.md", "scores/metrics.json"):
        assert (folder / file).is_file(), file
    assert list((folder / "onnx").rglob("*.onnx")) and list((folder / "maps").rglob("*.png"))
