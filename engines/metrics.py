"""How close two sets of images and of latents are."""

from __future__ import annotations

import numpy as np

PEAK = 255.0  # data range of uint8 images
CEILING_DB = 100.0  # stands for identical images, whose PSNR is infinite and has no place in JSON


def mean_squared_error(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """float64 [B] over two uint8 batches [B, H, W, 3]."""
    difference = images.astype(np.float64) - references.astype(np.float64)
    return (difference**2).reshape(len(images), -1).mean(axis=1)


def psnr_db(mse: np.ndarray | float) -> np.ndarray:
    """10 log10(255² / mse) in dB, at most 100; of an array element by element."""
    with np.errstate(divide="ignore"):
        return np.minimum(10 * np.log10(PEAK**2 / np.asarray(mse, np.float64)), CEILING_DB)


def ssim(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Structural similarity (Wang et al. 2004; 7 x 7 uniform window, mean over channels), float64 [B], at most 1."""
    from skimage.metrics import structural_similarity

    pairs = zip(images, references, strict=True)
    return np.array([structural_similarity(a, b, channel_axis=2, data_range=PEAK) for a, b in pairs])


def latent_cosine(latents: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Cosine between two runs' latents [B, steps, ...] after every step, mean over the batch: float64 [steps]."""
    a = latents.astype(np.float64).reshape(*latents.shape[:2], -1)
    b = references.astype(np.float64).reshape(*references.shape[:2], -1)
    norms = np.linalg.norm(a, axis=2) * np.linalg.norm(b, axis=2)
    return ((a * b).sum(axis=2) / np.maximum(norms, np.finfo(np.float64).tiny)).mean(axis=0)


def summary(values: np.ndarray) -> dict[str, float]:
    """Mean, smallest and population standard deviation."""
    return {"mean": float(np.mean(values)), "min": float(np.min(values)), "std": float(np.std(values))}
