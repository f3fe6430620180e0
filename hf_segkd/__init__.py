"""hf_segkd: distill a big semantic segmentation model into a small one, inside the Hugging Face ecosystem.

Importing it registers the package's models with transformers' Auto classes.
"""

__version__ = "0.1.0"

from hf_segkd.loading.any_model import load_model  # noqa: E402
from hf_segkd.loading.pretrained import load_processor  # noqa: E402
from hf_segkd.models import SegmentationOutput  # noqa: E402

__all__ = ["SegmentationOutput", "load_model", "load_processor"]
