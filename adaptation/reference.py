"""What a network answers by torch, for those who run it elsewhere to compare with."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .hosting import Forwarded, HostedModel
from .member import NormMember, Tensors
from .moments import Batch, Moments
from .part import Part

IMAGES = 2


def reference_images(hosted: HostedModel) -> NDArray[np.uint8]:
    """Two images with the spectrum of photographs, [2, H, W, C]: made from the fingerprint, the same each time."""
    channels, height, width = hosted.preprocessing.input_size
    seed = int.from_bytes(hashlib.sha256(hosted.fingerprint.encode()).digest()[:8], "big")
    noise = np.random.default_rng(seed).standard_normal((IMAGES, channels + 1, height, width))
    frequency = np.hypot(np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width) * width)
    spectrum = np.fft.rfft2(noise) / np.maximum(frequency, 1)
    waves: NDArray[np.float64] = np.real(np.fft.irfft2(spectrum, s=(height, width)))
    waves = waves / waves.std(axis=(2, 3), keepdims=True)
    pixels = 128 + 50 * waves[:, :1] + 25 * waves[:, 1:]  # Most of it in all colours alike, as light is.
    return np.clip(np.moveaxis(pixels, 1, 3).round(), 0, 255).astype(np.uint8)


def normalised(hosted: HostedModel, pixels: NDArray[np.uint8]) -> Tensor:
    """Pixels [B, H, W, C] that have the input's size already, as the network's input: float32 [B, C, H, W]."""
    return torch.from_numpy(hosted.preprocessing.normalise(pixels)).permute(0, 3, 1, 2).to(hosted.device)


def reference_logits(hosted: HostedModel, parameters: Tensors, reference: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The network's answers with other normalisation parameters.

    Args:
        hosted: the network.
        parameters: `weight` and `bias` [C_total] of all layers side by side; with batch normalisation, `mean` and
            `var` [C_total] of the batch norms.
        reference: pixels [B, H, W, C] of the input's size.

    Returns:
        Logits [B, classes].
    """
    logits = forward_with(hosted, parameters, normalised(hosted, reference))[0].logits
    return logits.cpu().numpy()


def forward_with(
    hosted: HostedModel, parameters: Tensors, images: Tensor, alpha: float = 0.0
) -> tuple[Forwarded, Part]:
    """A forward pass with other parameters, whose statistics are mixed with the batch's by the weight `alpha`."""
    device = hosted.device
    affine = torch.stack([parameters["weight"], parameters["bias"]]).to(device)
    moments = {name: parameters[name].to(device).unsqueeze(0) for name in ("mean", "var") if hosted.batch_norms}
    part = hosted.part(_Given(name="given", alpha=alpha), (len(images),), moments, affine.unsqueeze(0))
    with torch.inference_mode():
        return hosted.forward(images, [part]), part


class _Given(NormMember):
    """Statistics from the state, not from the network; mixed with the batch's as alpha-BN does."""

    alpha: float

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        del source
        given = Moments(state["mean"], state["var"])
        return given.mix(batch.unbiased(fallback=given), self.alpha), state
