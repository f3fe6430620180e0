"""Classes of Pascal VOC 2012; its colours follow from the class numbers."""

from hf_segkd.data.labels.colors import bit_color

_NAMES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
)

VOC = {name: bit_color(index) for index, name in enumerate(_NAMES.split())}
