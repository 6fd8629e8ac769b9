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


class Branches(nn.Module):
    """What stands on the trunk: similarity and classification branch behind a common neck (paper Fig. 2)."""

    def __init__(self, spec: EncoderSpec, channels: int) -> None:
        super().__init__()
        width = channels
        self.neck: nn.Module = nn.Identity()
        if spec.head == "paper":
            # As VGG16's classifier without its last layer.
            width = PAPER_HEAD_WIDTH
            self.neck = nn.Sequential(
                nn.Linear(channels * 49, width), nn.ReLU(), nn.Dropout(spec.dropout),
                nn.Linear(width, width), nn.ReLU(), nn.Dropout(spec.dropout),
            )  # fmt: skip
        self.similarity = nn.Linear(width, spec.embedding_dim)
        self.classification = nn.Linear(width, len(spec.classes))

    def forward(self, features_bf: Tensor) -> tuple[Tensor, Tensor]:
        """(b, f) features of the trunk -> (b, d) embeddings, (b, classes) logits."""
        features = self.neck(features_bf)
        return self.similarity(features), self.classification(features)


class Encoder(nn.Module):
    """Images to embeddings and class logits: a trunk and two branches."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        trunk = build_trunk(spec.backbone)
        self.trunk = trunk.to(memory_format=torch.channels_last) if spec.channels_last else trunk
        self.pool = nn.AdaptiveAvgPool2d(7 if spec.head == "paper" else 1)
        self.branches = Branches(spec, _channels(self.trunk))

    def forward(self, x_b3hw: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, h, w) normalised images -> (b, d) embeddings, (b, classes) logits."""
        embeddings, logits = self.branches(self.features(x_b3hw))
        return embeddings, logits

    def features(self, x_b3hw: Tensor) -> Tensor:
        """(b, 3, h, w) normalised images -> (b, f) what the branches see, fp32 whatever the trunk computes in."""
        if self.spec.channels_last:
            x_b3hw = x_b3hw.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x_b3hw.device.type, torch.bfloat16, enabled=self.spec.precision == "bf16"):
            pooled = self.pool(self.trunk(x_b3hw))
        return torch.flatten(pooled, 1).float()

    def freeze(self, what: str | int) -> None:
        """Leave the whole trunk (``convolutions``), nothing (``none``) or its first modules as they are.

        Raises:
            SettingsError: the trunk has fewer modules.
        """
        modules = list(self.trunk.children())
        count = {"convolutions": len(modules), "none": 0}.get(str(what), what)
        assert isinstance(count, int)
        if count > len(modules):
            raise SettingsError(
                f"encoder.freeze = {what}: the trunk of {self.spec.backbone} has {len(modules)} modules"
            )
        self._frozen = modules[:count]
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Encoder:
        """Training mode; what is frozen stays in evaluation mode, its BatchNorm does not drift."""
        super().train(mode)
        for module in getattr(self, "_frozen", ()):
            module.eval()
        return self


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
    neck = encoder.branches.neck.state_dict()
    if set(neck) == set(layers) and all(v in state and state[v].shape == neck[k].shape for k, v in layers.items()):
        encoder.branches.neck.load_state_dict({k: state[v] for k, v in layers.items()})


def to_input(grey_bss: Tensor) -> Tensor:
    """(b, s, s) grey levels 0..255 or 0..1 floats -> (b, 3, s, s) normalised input."""
    grey = grey_bss.float() / 255 if grey_bss.dtype == torch.uint8 else grey_bss
    mean = torch.tensor(MEAN, device=grey.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=grey.device).view(1, 3, 1, 1)
    return (grey[:, None] - mean) / std
