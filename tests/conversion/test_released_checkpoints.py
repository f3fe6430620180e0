"""Released ESPNet weights of Structured KD: converted and evaluated by the scripts, they give their published mIoU."""

import json

import pytest

from helpers.commands import script
from helpers.paths import SHARED
from hf_segkd.commands import evaluate

CHECKPOINTS = SHARED / "checkpoints"
REFERENCE = CHECKPOINTS / "espnet_camvid_miou.json"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(json.loads(REFERENCE.read_text())) if REFERENCE.is_file() else [])
def test_converted_checkpoint_has_the_miou_of_the_original(name, tmp_path, camvid):
    """Channel order, mean, align_corners, void label: each slip costs points that look like a bad checkpoint."""
    script("convert").main([str(CHECKPOINTS / name), str(tmp_path / "model"), "--dataset", "camvid"])
    argv = [str(tmp_path / "model"), "--dataset", "camvid", "--data_dir", str(camvid), "--split", "test"]
    (report,) = evaluate.main([*argv, "--output_dir", str(tmp_path / "out"), "--device", "cpu"]).values()
    expected = json.loads(REFERENCE.read_text())[name]
    assert report["mean_iou"] == pytest.approx(expected["miou"], abs=2e-4)
    assert list(report["per_class_iou"].values()) == pytest.approx(expected["iou"], abs=1e-3)
    assert report["overall_accuracy"] == pytest.approx(expected["pixacc"], abs=1e-3)
