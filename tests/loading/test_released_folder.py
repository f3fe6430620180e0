"""A student that an earlier version released, with the code it brought along."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForSemanticSegmentation

from helpers.paths import TESTS
from hf_segkd.loading.any_model import load_model

RELEASED = TESTS / "golden" / "released" / "espnet"
WITHOUT_PACKAGE = """
import sys, torch
sys.modules["hf_segkd"] = None
from transformers import AutoModelForSemanticSegmentation
model = AutoModelForSemanticSegmentation.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
x = torch.linspace(-2, 2, 3 * 24 * 32).reshape(1, 3, 24, 32)
torch.save(model(pixel_values=x).logits.detach(), sys.argv[2])
"""


def expected() -> torch.Tensor:
    saved = json.loads((RELEASED / "logits.json").read_text())
    return torch.tensor(saved["logits"]).reshape(saved["shape"])


@pytest.mark.parametrize("load", [lambda x: load_model(x)[0], AutoModelForSemanticSegmentation.from_pretrained])
def test_a_folder_released_before_gives_the_same_logits(load):
    """State-dict names and config fields are public: a student on the Hub must outlive every change of ours."""
    pixel_values = torch.linspace(-2, 2, 3 * 24 * 32).reshape(1, 3, 24, 32)
    with torch.no_grad():
        logits = load(str(RELEASED)).eval()(pixel_values=pixel_values).logits
    assert torch.allclose(logits, expected(), atol=1e-5)


@pytest.mark.slow
def test_its_own_code_gives_them_too_where_the_package_is_absent(tmp_path):
    """Strangers load the folder with nothing but transformers."""
    shutil.copytree(RELEASED, tmp_path / "released")
    arguments = [str(tmp_path / "released"), str(tmp_path / "logits.pt")]
    subprocess.run([sys.executable, "-c", WITHOUT_PACKAGE, *arguments], check=True, cwd=tmp_path)
    assert torch.allclose(torch.load(tmp_path / "logits.pt", weights_only=True), expected(), atol=1e-5)
