"""The encoder: a torchvision trunk, a similarity branch and a classification branch (DESIGN §3)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor, nn

from mrcg.encoder.spec import EncoderSpec
from mrcg.errors import SettingsError, WeightsError

# ImageNet statistics, what torchvision's weights were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
PAPER_HEAD_WIDTH = 4096
#: Prefixes of torchvision's own classifiers, which are replaced by the two branches.
HEAD = ("classifier.", "fc.")


class Encoder(nn.Module):
    """Images to embeddings and class logits, by two branches on one trunk (paper Fig. 2)."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        self.trunk = build_trunk(spec.backbone)
        channels = _channels(self.trunk)
        if spec.head == "paper":
            # As VGG16's classifier without its last layer.
            self.pool: nn.Module = nn.AdaptiveAvgPool2d(7)
            width = PAPER_HEAD_WIDTH
            self.neck: nn.Module = nn.Sequential(
                nn.Linear(channels * 49, width), nn.ReLU(), nn.Dropout(spec.dropout),
                nn.Linear(width, width), nn.ReLU(), nn.Dropout(spec.dropout),
            )  # fmt: skip
        else:
            self.pool, self.neck, width = nn.AdaptiveAvgPool2d(1), nn.Identity(), channels
        self.similarity = nn.Linear(width, spec.embedding_dim)
        self.classification = nn.Linear(width, len(spec.classes))

    def forward(self, x_b3hw: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, h, w) normalised images -> (b, d) embeddings, (b, classes) logits."""
        features = self.neck(torch.flatten(self.pool(self.trunk(x_b3hw)), 1))
        return self.similarity(features), self.classification(features)


def build_trunk(backbone: str) -> nn.Module:
    """The convolutional part of a torchvision classification model, untrained.

    Raises:
        SettingsError: torchvision has no such model, or it has no convolutional trunk.
    """
    try:
        model = torchvision.models.get_model(backbone, weights=None)
    except ValueError as error:
        raise SettingsError(f"encoder.backbone = {backbone}: torchvision has no model of this name") from error
    return _trunk_of(model, backbone)


def _trunk_of(model: nn.Module, backbone: str) -> nn.Module:
    if isinstance(features := getattr(model, "features", None), nn.Module):
        return features
    if hasattr(model, "layer4"):
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        return nn.Sequential(*(getattr(model, name) for name in names))
    raise SettingsError(
        f"encoder.backbone = {backbone}: has neither `features` nor `layer4`; take vgg, resnet, mobilenet …"
    )


def _channels(trunk: nn.Module) -> int:
    was_training = trunk.training
    with torch.no_grad():
        channels = trunk.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    trunk.train(was_training)
    return int(channels)


def load_pretrained(encoder: Encoder, state: Mapping[str, Tensor]) -> None:
    """Put weights named as torchvision names them into the trunk (and VGG's neck, where it fits).

    Args:
        encoder: changed in place.
        state: e.g. ``features.0.weight``; classifier weights may be there or not.

    Raises:
        WeightsError: the weights are of another architecture; names the first mismatch.
    """
    model = torchvision.models.get_model(encoder.spec.backbone, weights=None)
    own = model.state_dict()
    for name, tensor in state.items():
        if name not in own:
            raise WeightsError(
                f"weights have {name}, which {encoder.spec.backbone} has not: name the fitting encoder.backbone"
            )
        if tensor.shape != own[name].shape and not name.startswith(HEAD):
            raise WeightsError(
                f"weights {name} have shape {tuple(tensor.shape)}, "
                f"{encoder.spec.backbone} wants {tuple(own[name].shape)}"
            )
    for name in own:
        if name not in state and not name.startswith(HEAD) and not name.endswith("num_batches_tracked"):
            raise WeightsError(f"weights lack {name} of {encoder.spec.backbone}: name the fitting encoder.backbone")
    model.load_state_dict({k: v for k, v in state.items() if v.shape == own[k].shape}, strict=False)
    encoder.trunk.load_state_dict(_trunk_of(model, encoder.spec.backbone).state_dict())
    layers = {f"{i}.{part}": f"classifier.{i}.{part}" for i in (0, 3) for part in ("weight", "bias")}
    neck = encoder.neck.state_dict()
    if set(neck) == set(layers) and all(v in state and state[v].shape == neck[k].shape for k, v in layers.items()):
        encoder.neck.load_state_dict({k: state[v] for k, v in layers.items()})


def to_input(grey_bss: Tensor) -> Tensor:
    """(b, s, s) grey levels 0..255 or 0..1 floats -> (b, 3, s, s) normalised input."""
    grey = grey_bss.float() / 255 if grey_bss.dtype == torch.uint8 else grey_bss
    mean = torch.tensor(MEAN, device=grey.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=grey.device).view(1, 3, 1, 1)
    return (grey[:, None] - mean) / std
