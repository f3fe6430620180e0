"""ESPNet and ESPNet-C as released by Structured Knowledge Distillation (branch cvpr_19)."""

import re

from hf_segkd.conversion.family import Family, StateDict
from hf_segkd.models import PROCESSORS
from hf_segkd.models.espnet import ESPNetConfig

_BRANCH = r"(c1|d1|d2|d4|d8|d16)\.conv\."

RENAME = (
    (r"^level1\.conv\.", "encoder.stem.convolution."),
    (r"^level1\.bn\.", "encoder.stem.normalization."),
    (r"^level1\.act\.", "encoder.stem.activation."),
    (r"^b1\.bn\.", "encoder.norms.0.normalization."),
    (r"^b1\.act\.", "encoder.norms.0.activation."),
    (r"^b2\.bn\.", "encoder.norms.1.normalization."),
    (r"^b2\.act\.", "encoder.norms.1.activation."),
    (r"^b3\.bn\.", "encoder.norms.2.normalization."),
    (r"^b3\.act\.", "encoder.norms.2.activation."),
    (rf"^level2_0\.{_BRANCH}", r"encoder.stages.0.downsample.\1."),
    (r"^level2_0\.bn\.", "encoder.stages.0.downsample.normalization."),
    (r"^level2_0\.act\.", "encoder.stages.0.downsample.activation."),
    (rf"^level2\.(\d+)\.{_BRANCH}", r"encoder.stages.0.layers.\1.\2."),
    (r"^level2\.(\d+)\.bn\.bn\.", r"encoder.stages.0.layers.\1.normalization."),
    (r"^level2\.(\d+)\.bn\.act\.", r"encoder.stages.0.layers.\1.activation."),
    (rf"^level3_0\.{_BRANCH}", r"encoder.stages.1.downsample.\1."),
    (r"^level3_0\.bn\.", "encoder.stages.1.downsample.normalization."),
    (r"^level3_0\.act\.", "encoder.stages.1.downsample.activation."),
    (rf"^level3\.(\d+)\.{_BRANCH}", r"encoder.stages.1.layers.\1.\2."),
    (r"^level3\.(\d+)\.bn\.bn\.", r"encoder.stages.1.layers.\1.normalization."),
    (r"^level3\.(\d+)\.bn\.act\.", r"encoder.stages.1.layers.\1.activation."),
    (r"^classifier_1\.conv\.", "auxiliary_head.classifier."),
    (r"^level3_C\.conv\.", "decode_head.lateral."),
    (r"^br\.", "decode_head.auxiliary_norm."),
    (r"^conv\.conv\.", "decode_head.fuse.convolution."),
    (r"^conv\.bn\.", "decode_head.fuse.normalization."),
    (r"^conv\.act\.", "decode_head.fuse.activation."),
    (r"^up_l3\.0\.", "decode_head.upsample_3."),
    (r"^combine_l2_l3\.0\.bn\.", "decode_head.combine_norm.normalization."),
    (r"^combine_l2_l3\.0\.act\.", "decode_head.combine_norm.activation."),
    (rf"^combine_l2_l3\.1\.{_BRANCH}", r"decode_head.combine.\1."),
    (r"^combine_l2_l3\.1\.bn\.bn\.", "decode_head.combine.normalization."),
    (r"^combine_l2_l3\.1\.bn\.act\.", "decode_head.combine.activation."),
    (r"^up_l2\.0\.", "decode_head.upsample_2."),
    (r"^up_l2\.1\.bn\.", "decode_head.upsample_2_norm.normalization."),
    (r"^up_l2\.1\.act\.", "decode_head.upsample_2_norm.activation."),
    (r"^classifier\.(conv\.)?weight$", "decode_head.classifier.weight"),
)


def config(state_dict: StateDict) -> ESPNetConfig:
    """ESPNet has a decoder above its encoder's classifier, ESPNet-C ends with that classifier."""
    use_decoder = any(key.startswith("up_l3.") for key in state_dict)
    classifier = "classifier_1.conv.weight" if use_decoder else "classifier.conv.weight"
    widths = [state_dict[key].shape[0] for key in ("level1.conv.weight", "level2_0.bn.weight", "level3_0.bn.weight")]
    depths = [
        len({match[1] for key in state_dict if (match := re.match(rf"{level}\.(\d+)\.", key))})
        for level in ("level2", "level3")
    ]
    return ESPNetConfig(
        num_labels=state_dict[classifier].shape[0], hidden_sizes=widths, depths=depths, use_decoder=use_decoder
    )


FAMILY = Family(
    name="ESPNet",
    signature=r"^level2_0\.d16\.conv\.weight$",
    rename=RENAME,
    config=config,
    processor=PROCESSORS[ESPNetConfig.model_type],
    checked="vectors of the original code, 12 released files (10 with their published mIoU)",
)
