"""What releases of transformers before 5.4 lack or name otherwise, so that the networks run from 4.57 on."""

from dataclasses import dataclass, fields, is_dataclass
from inspect import signature
from typing import Any

from torch import nn

try:
    from transformers import PreTrainedConfig
except ImportError:  # 4.57
    from transformers import PretrainedConfig as PreTrainedConfig

try:
    from transformers import initialization as init
except ImportError:  # 4.57
    init = nn.init

try:
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
except ImportError:  # 4.57 and 5.0
    from transformers.utils import backbone_utils as _old

    class BackboneConfigMixin(_old.BackboneConfigMixin):
        def set_output_features_output_indices(
            self, out_features: list[str] | None, out_indices: list[int] | None
        ) -> None:
            self._out_features, self._out_indices = _old.get_aligned_output_features_output_indices(
                out_features=out_features, out_indices=out_indices, stage_names=self.stage_names
            )

    class BackboneMixin(_old.BackboneMixin):
        def __init__(self, config: PreTrainedConfig):
            super().__init__(config)
            self._init_backbone(config)


if is_dataclass(PreTrainedConfig):
    DataclassConfig = PreTrainedConfig
else:  # before 5.4

    class DataclassConfig(PreTrainedConfig):
        """Config whose annotated fields are its arguments, and whose `__post_init__` gets all the others."""

        def __init_subclass__(cls, **kwargs: Any):
            super().__init_subclass__(**kwargs)
            dataclass(cls, init=False, repr=False, eq=False)

        def __init__(self, **kwargs: Any):
            for field in fields(self):
                setattr(self, field.name, kwargs.pop(field.name, field.default))
            self.__post_init__(**kwargs)

        def __post_init__(self, **kwargs: Any):
            super().__init__(**kwargs)


def field_names(config_class: type[PreTrainedConfig]) -> set[str]:
    """Names of the arguments that a config keeps as its fields, those of every config included."""
    names = {field.name for field in fields(config_class)} if is_dataclass(config_class) else set()
    if not is_dataclass(PreTrainedConfig):
        for init_of in (config_class.__init__, PreTrainedConfig.__init__):
            names |= set(signature(init_of).parameters)
    return names - {"self", "kwargs"}
