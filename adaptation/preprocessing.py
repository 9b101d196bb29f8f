"""From a photograph to a network's input, by the network's own timm data configuration."""

import hashlib
from functools import cached_property
from typing import Any

from PIL.Image import Image
from pydantic import Field
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

from .member import Frozen


class Preprocessing(Frozen):
    """How a network wants its images. Part of the model's fingerprint: a wrong mean costs a ViT 21 points."""

    input_size: tuple[int, int, int] = (3, 224, 224)
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    crop_pct: float = Field(0.875, gt=0, le=1)
    crop_mode: str = "center"

    @classmethod
    def of(cls, model: nn.Module, **changes: Any) -> "Preprocessing":
        """The configuration that timm keeps with `model`; `changes` replace single fields of it."""
        config = resolve_data_config({}, model=model)
        return cls(**{name: config[name] for name in cls.model_fields} | changes)

    def __call__(self, image: Image) -> Tensor:
        """An RGB image of any size to float32 [C, H, W], normalised."""
        return self._transform(image)  # type: ignore[no-any-return]

    @cached_property
    def _transform(self) -> Any:
        return create_transform(**self.model_dump(), is_training=False)

    @property
    def digest(self) -> str:
        """Equal for equal configurations, in hexadecimal."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
