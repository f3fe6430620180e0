"""hf_segkd: distil a big semantic segmentation model into a small one, inside the Hugging Face ecosystem.

Importing it registers the package's models with transformers' Auto classes.
"""

__version__ = "0.1.0"

from hf_segkd.loading.pretrained import load_processor, load_segmenter  # noqa: E402
from hf_segkd.models import SegmentationOutput  # noqa: E402

__all__ = ["SegmentationOutput", "load_processor", "load_segmenter"]
