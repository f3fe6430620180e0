"""Run as a script, on any release of transformers: load the students in a folder without this package.

Prints as JSON, for each: the largest difference of its logits from the saved ones as a part of the largest logit, the
class of its image processor, what transformers complained of, and the files that saving it again writes.
"""

import json
import logging
import sys
import tempfile
from pathlib import Path

sys.modules["hf_segkd"] = None

import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline  # noqa: E402

PIXEL_VALUES = torch.linspace(-2, 2, 3 * 64 * 96).reshape(1, 3, 64, 96)
complaints: list[str] = []


class Complaints(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complaints.append(record.getMessage())


def load(folder: Path) -> dict:
    complaints.clear()
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.no_grad():
        logits = model(pixel_values=PIXEL_VALUES).logits
    try:
        processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
        kind = type(processor).__name__
    except ImportError as error:  # some releases want torchvision here, though not in the pipeline
        processor, kind = None, " ".join(str(error).split())[:60]
    pipeline("image-segmentation", model=str(folder), trust_remote_code=True)(Image.new("RGB", (96, 64)))
    with tempfile.TemporaryDirectory() as again:
        for item in (model, processor):
            if item is not None:
                item.save_pretrained(again)
        files = sorted(path.name for path in Path(again).iterdir())
    expected = torch.load(f"{folder}.pt", weights_only=True)
    difference = ((logits - expected).abs().max() / expected.abs().max()).item()
    return {"difference": difference, "processor": kind, "complaints": list(complaints), "saved again": files}


if __name__ == "__main__":
    torch.set_num_threads(1)
    handler = Complaints(level=logging.WARNING)
    transformers.utils.logging.get_logger("transformers").addHandler(handler)
    folders = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir())
    print(json.dumps({folder.name: load(folder) for folder in folders}))
