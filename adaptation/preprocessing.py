"""From a photograph to a network's input, by the network's own timm data configuration."""

import hashlib
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from pydantic import Field
from timm.data import create_transform, resolve_data_config
from timm.data.transforms import str_to_pil_interp
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
        return torch.from_numpy(self.array(image)).permute(2, 0, 1)

    def array(self, image: Image) -> NDArray[np.float32]:
        """The same as [H, W, C], made without torch and so without a team of OpenMP threads."""
        return self.normalise(np.moveaxis(np.asarray(self._to_pixels(image)), 0, 2))

    def of_crop(self, image: Image) -> Tensor:
        """An RGB image that is a network's input already, this one's or another's: no further crop; [C, H, W]."""
        _, height, width = self.input_size
        if image.size != (width, height):
            image = image.resize((width, height), str_to_pil_interp(self.interpolation))
        return torch.from_numpy(self.normalise(np.asarray(image))).permute(2, 0, 1)

    def normalise(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Pixels [..., C] of the input's size, in the same shape."""
        array: NDArray[np.float32] = pixels.astype(np.float32)
        array /= np.float32(255)
        array -= np.asarray(self.mean, np.float32)
        array /= np.asarray(self.std, np.float32)
        return array

    @cached_property
    def _to_pixels(self) -> Any:
        """To uint8 [C, H, W]: timm's transform as it is before a loader's own normalisation."""
        return create_transform(**self.model_dump(), is_training=False, use_prefetcher=True)

    @property
    def digest(self) -> str:
        """Equal for equal configurations, in hexadecimal."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()
