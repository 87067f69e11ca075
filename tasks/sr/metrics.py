"""PSNR and SSIM of 8-bit pictures. SSIM by torchmetrics; PSNR is one line, pooled over the patches of a unit."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

_MARGIN = 5  # pixels from the middle of SSIM's window to its edge
ROUNDING = 1 / 12  # mean squared error of rounding to whole grey levels


def to_bytes(picture: Float[Tensor, "B C S S"]) -> UInt8[np.ndarray, "B S S C"]:
    """[-1, 1] to 0 .. 255, clipped and rounded: what is scored is what a picture file holds."""
    levels = ((picture.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round()
    return levels.permute(0, 2, 3, 1).to(torch.uint8).numpy()


def from_bytes(picture: UInt8[np.ndarray, "B S S C"]) -> Float[Tensor, "B C S S"]:
    """0 .. 255 to [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(0, 3, 1, 2).float() / 127.5 - 1


def squared_error(
    output: UInt8[np.ndarray, "B S S C"], target: UInt8[np.ndarray, "B S S C"]
) -> Float[np.ndarray, " B"]:
    """Mean squared error of each picture over pixels and colours, in grey levels of 0 .. 255."""
    return ((output.astype(np.float64) - target) ** 2).mean(axis=(1, 2, 3))


def psnr(mean_squared_error: np.ndarray) -> np.ndarray:
    """``10 log10(255^2 / max(MSE, 1/12))`` in dB; at most 58.9, for no smaller error than rounding's can be seen."""
    return 10 * np.log10(255.0**2 / np.maximum(mean_squared_error, ROUNDING))


def ssim(output: UInt8[np.ndarray, "B S S C"], target: UInt8[np.ndarray, "B S S C"]) -> Float[np.ndarray, " B"]:
    """Structural similarity of each picture: the mean over colours and positions of

    ``(2 m_x m_y + c_1)(2 s_xy + c_2) / ((m_x^2 + m_y^2 + c_1)(s_x^2 + s_y^2 + c_2))``

    with local means, variances and covariance in a Gaussian window of 11 x 11 pixels with deviation 1.5 that lies
    wholly in the picture; c_1 = (0.01 x 255)^2, c_2 = (0.03 x 255)^2 (Wang et al., "Image Quality Assessment: From
    Error Visibility to Structural Similarity", IEEE TIP 13(4), 2004, equation 13).
    """
    _, local = structural_similarity_index_measure(
        _colours_first(output),
        _colours_first(target),
        gaussian_kernel=True,
        sigma=1.5,
        reduction="none",
        data_range=255.0,
        k1=0.01,
        k2=0.03,
        return_full_image=True,
    )
    # torchmetrics reflects pictures at their edges and averages over all positions; the paper has no such windows.
    inside = local[:, :, _MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    return inside.flatten(1).mean(dim=1).numpy()


def _colours_first(pictures: UInt8[np.ndarray, "B S S C"]) -> Float[Tensor, "B C S S"]:
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).double()
