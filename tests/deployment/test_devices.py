"""What docs/deployment.md shows for devices, run as it stands, each tool installed for the test.

`HF_SEGKD_DEVICES=FOLDER pytest -m slow tests/deployment/test_devices.py -s` keeps the installed tools there and prints
the rows of the page's table.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from PIL import Image

from dataset_builders.street_scenes import draw_scene
from helpers.paths import ROOT
from helpers.tiny import RECIPE

pytestmark = pytest.mark.slow

# By the heading on the page: what pip installs, and whether the result takes images of any size.
TOOLS = {
    "torch.export": ((), True),
    "OpenVINO": (("openvino", "nncf"), True),
    "ExecuTorch": (("executorch",), False),
    "LiteRT": (("litert-torch",), False),
    "CoreML": (("coremltools",), False),
}
SIDES = (97, 131)
ANY_SIDES = [SIDES, (64, 199), (151, 80), (98, 132), (65, 67)]
COMPARE = """
import json, sys
from dataset_builders.street_scenes import draw_scene
found = {}
for name in [name for name in ("segment", "segment_int8") if name in globals()]:
    equal = []
    for index, sides in enumerate(json.loads(sys.argv[1])):
        image = draw_scene("test", index, *sides, seed=0)[0]
        with torch.no_grad():
            expected = graph(torch.from_numpy(image[None]))[0].numpy()
        labels = globals()[name](image)
        assert labels.shape == expected.shape, (labels.shape, expected.shape)
        equal.append(float((labels == expected).mean()))
    found[name] = min(equal)
print(json.dumps(found))
"""


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def blocks(heading: str) -> list[str]:
    """The Python below a heading of the section on devices; below the section's own, what all begin with."""
    page = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    section = page.split("\n## On devices\n")[1].split("\n## ")[0]
    first, *parts = section.split("\n### ")
    text = {"": first} | {part.partition("\n")[0]: part for part in parts}
    return re.findall(r"```python\n(.*?)```", text[heading], flags=re.DOTALL)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with a student and photos, as the page supposes. It is trained: random weights have no margins."""
    folder = tmp_path_factory.mktemp("devices")
    recipe = RECIPE | {
        "dataset_config": {"num_train": 64, "num_validation": 4, "num_test": 2, "height": SIDES[0], "width": SIDES[1]},
        "student": {"model_type": "espnet", "depths": [1, 1]},
        **{"max_steps": 200, "eval_steps": 200, "save_steps": 200, "learning_rate": 0.1, "logging_steps": 50},
        "output_dir": "runs/student",
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    subprocess.run(
        [sys.executable, "-m", "hf_segkd", "distill", "recipe.yaml"], check=True, cwd=folder, env=environment()
    )
    (folder / "photos").mkdir()
    for index in range(4):
        Image.fromarray(draw_scene("train", index, *SIDES, seed=0)[0]).save(folder / "photos" / f"{index}.png")
    return folder


def python_with(packages: tuple[str, ...], folder: Path) -> str:
    """An interpreter that finds the packages, and what is installed here."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        installed = sysconfig.get_paths()["purelib"]
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "installed.pth").write_text(installed + "\n")
        install = [python, "-m", "pip", "install", "--quiet", *packages]
        if subprocess.run(install).returncode:
            shutil.rmtree(folder)
            pytest.skip(f"pip cannot install {', '.join(packages)}")
    return str(python)


@pytest.mark.parametrize("tool", TOOLS)
def test_student_runs_in_each_tool_as_in_pytorch(tool, workplace, tmp_path):
    """A snippet that was never run is the first thing that a reader finds broken."""
    packages, any_size = TOOLS[tool]
    kept = Path(os.environ.get("HF_SEGKD_DEVICES", tmp_path)) / tool.lower()
    python = python_with(packages, kept) if packages else sys.executable
    script = "\n".join([*blocks(""), *blocks(tool), COMPARE]).replace("360, 480", f"{SIDES[0]}, {SIDES[1]}")
    sides = json.dumps(ANY_SIDES if any_size else [SIDES] * 5)
    done = subprocess.run(
        [python, "-c", script, sides], capture_output=True, text=True, cwd=workplace, env=environment()
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"\n| {tool} | {found} |")
    assert tool == "CoreML" or "segment" in found
    assert found.get("segment", 1) >= 0.999
    assert found.get("segment_int8", 1) >= 0.9
    if tool == "CoreML":
        assert (workplace / "runs" / "student.mlpackage").is_dir()
