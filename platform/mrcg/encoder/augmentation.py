"""Image augmentation: small random changes that keep an MRI slice plausible."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2


def augmentation() -> v2.Transform:
    """Return the random transform: flip, rotation, shift, scale, brightness and contrast.

    Left-right flip, rotation by up to ±10°, shift by up to ±5 %, scale 0.9 to 1.1, brightness and contrast by up to
    ±15 %. No up-down flip, because a head has a top, and no crop, because a tumour may lie at the edge.
    """
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(10, translate=(0.05, 0.05), scale=(0.9, 1.1), interpolation=InterpolationMode.BILINEAR),
            v2.ColorJitter(brightness=0.15, contrast=0.15),
        ]
    )


def augment(grey_bss: Tensor, seed: int) -> Tensor:
    """Augment each image independently, on the device that holds it.

    Args:
        grey_bss: (b, s, s) grey levels, uint8.
        seed: seed of the random draws; the state of torch's global generators is restored afterwards.

    Returns:
        (b, s, s) floats 0..1.
    """
    devices = [grey_bss.device] if grey_bss.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        transform = augmentation()
        grey = grey_bss[:, None].float() / 255
        # One image at a time: a torchvision transform applies one random draw to the whole batch.
        return torch.stack([transform(image) for image in grey])[:, 0]
