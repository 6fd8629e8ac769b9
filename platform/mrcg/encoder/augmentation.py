"""Small changes that leave an MRI slice plausible."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2


def augmentation() -> v2.Transform:
    """Left-right flip, rotation to 10°, shift to 5 %, scale 0.9-1.1, brightness and contrast to 15 %.

    No up-down flip and no crop: a head has a top, and a tumour may lie at the edge.
    """
    return v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomAffine(10, translate=(0.05, 0.05), scale=(0.9, 1.1), interpolation=InterpolationMode.BILINEAR),
            v2.ColorJitter(brightness=0.15, contrast=0.15),
        ]
    )


def augment(grey_bss: Tensor, seed: int) -> Tensor:
    """Change each image in its own way, on the device it lies on.

    Args:
        grey_bss: (b, s, s) grey levels, uint8.
        seed: of the draws; the state of torch's generators is left as it was.

    Returns:
        (b, s, s) floats 0..1.
    """
    devices = [grey_bss.device] if grey_bss.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        transform = augmentation()
        grey = grey_bss[:, None].float() / 255
        # One by one: a transform draws once for a whole batch.
        return torch.stack([transform(image) for image in grey])[:, 0]
