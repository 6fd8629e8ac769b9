"""The encoder: a torchvision trunk, a similarity branch and a classification branch (docs/method.md#encoder)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torchvision
from torch import Tensor, nn

from mrcg.encoder.spec import EncoderSpec
from mrcg.errors import SettingsError, WeightsError

# ImageNet statistics that torchvision's weights were trained with.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
PAPER_HEAD_WIDTH = 4096
#: Prefixes of torchvision's classifier layers, which the two branches replace.
HEAD = ("classifier.", "fc.")


class Branches(nn.Module):
    """The similarity and classification branches, which share a neck on top of the trunk (paper Fig. 2)."""

    def __init__(self, spec: EncoderSpec, channels: int) -> None:
        super().__init__()
        width = channels
        self.neck: nn.Module = nn.Identity()
        if spec.head == "paper":
            # VGG16's classifier without its last layer.
            width = PAPER_HEAD_WIDTH
            self.neck = nn.Sequential(
                nn.Linear(channels * 49, width), nn.ReLU(), nn.Dropout(spec.dropout),
                nn.Linear(width, width), nn.ReLU(), nn.Dropout(spec.dropout),
            )  # fmt: skip
        self.similarity = nn.Linear(width, spec.embedding_dim)
        self.classification = nn.Linear(width, len(spec.classes))

    def forward(self, features_bf: Tensor) -> tuple[Tensor, Tensor]:
        """(b, f) trunk features -> (b, d) embeddings, (b, classes) logits."""
        features = self.neck(features_bf)
        return self.similarity(features), self.classification(features)


class Encoder(nn.Module):
    """Maps images to embeddings and class logits with a trunk and two branches."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.spec = spec
        trunk = build_trunk(spec.backbone)
        self.trunk = trunk.to(memory_format=torch.channels_last) if spec.channels_last else trunk
        self.pool = nn.AdaptiveAvgPool2d(7 if spec.head == "paper" else 1)
        self.branches = Branches(spec, _channels(self.trunk))
        self._trunk_learns = True

    def forward(self, x_b3hw: Tensor) -> tuple[Tensor, Tensor]:
        """(b, 3, h, w) normalised images -> (b, d) embeddings, (b, classes) logits."""
        embeddings, logits = self.branches(self.features(x_b3hw))
        return embeddings, logits

    def features(self, x_b3hw: Tensor) -> Tensor:
        """(b, 3, h, w) normalised images -> (b, f) trunk features, always fp32, even if the trunk computes in bf16.

        With ``spec.mirror``, they are the mean of those of the image and its mirror image, except while the trunk is
        trained.
        """
        if self.spec.channels_last:
            x_b3hw = x_b3hw.contiguous(memory_format=torch.channels_last)
        features = self._features_of_view(x_b3hw)
        if self.spec.mirror and not (self.training and self._trunk_learns):
            features = (features + self._features_of_view(x_b3hw.flip(-1))) / 2
        return features

    def _features_of_view(self, x_b3hw: Tensor) -> Tensor:
        with torch.autocast(x_b3hw.device.type, torch.bfloat16, enabled=self.spec.precision == "bf16"):
            pooled = self.pool(self.trunk(x_b3hw))
        return torch.flatten(pooled, 1).float()

    def freeze(self, extent: str | int) -> None:
        """Freeze the whole trunk (``convolutions``), nothing (``none``) or the first ``extent`` modules of the trunk.

        Raises:
            SettingsError: the trunk has fewer modules.
        """
        modules = list(self.trunk.children())
        count = {"convolutions": len(modules), "none": 0}.get(str(extent), extent)
        assert isinstance(count, int)
        if count > len(modules):
            raise SettingsError(
                f"encoder.freeze = {extent}: the trunk of {self.spec.backbone} has {len(modules)} modules; "
                "lower it to at most that number"
            )
        self._frozen, self._trunk_learns = modules[:count], count < len(modules)
        for module in self._frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> Encoder:
        """Set training mode; frozen modules stay in evaluation mode, so their BatchNorm statistics do not change."""
        super().train(mode)
        for module in getattr(self, "_frozen", ()):
            module.eval()
        return self


def build_trunk(backbone: str) -> nn.Module:
    """Return the convolutional part of a torchvision classification model, untrained.

    Raises:
        SettingsError: torchvision has no such model, or it has no convolutional trunk.
    """
    try:
        model = torchvision.models.get_model(backbone, weights=None)
    except ValueError as error:
        raise SettingsError(
            f"encoder.backbone = {backbone}: torchvision has no model of this name; "
            "torchvision.models.list_models() lists them"
        ) from error
    return _trunk_of(model, backbone)


def _trunk_of(model: nn.Module, backbone: str) -> nn.Module:
    if isinstance(features := getattr(model, "features", None), nn.Module):
        return features
    if hasattr(model, "layer4"):
        names = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
        return nn.Sequential(*(getattr(model, name) for name in names))
    raise SettingsError(
        f"encoder.backbone = {backbone}: the model has neither `features` nor `layer4`; "
        "choose another one, such as a VGG, ResNet or MobileNet"
    )


def _channels(trunk: nn.Module) -> int:
    was_training = trunk.training
    with torch.no_grad():
        channels = trunk.eval()(torch.zeros(1, 3, 64, 64)).shape[1]
    trunk.train(was_training)
    return int(channels)


def load_pretrained(encoder: Encoder, state: Mapping[str, Tensor]) -> None:
    """Load weights in torchvision's naming into the trunk, and into the neck if they include VGG's matching layers.

    Args:
        encoder: changed in place.
        state: tensors by torchvision name, e.g. ``features.0.weight``; classifier weights are optional.

    Raises:
        WeightsError: the weights are of another architecture; the message names the first mismatch.
    """
    backbone = encoder.spec.backbone
    model = torchvision.models.get_model(backbone, weights=None)
    expected = model.state_dict()
    for name, tensor in state.items():
        if name not in expected:
            raise WeightsError(
                f"weights contain {name}, which {backbone} does not have: set encoder.backbone to their architecture"
            )
        if tensor.shape != expected[name].shape and not name.startswith(HEAD):
            raise WeightsError(
                f"weights {name} have shape {tuple(tensor.shape)}, but {backbone} expects "
                f"{tuple(expected[name].shape)}: set encoder.backbone to their architecture"
            )
    for name in expected:
        if name not in state and not name.startswith(HEAD) and not name.endswith("num_batches_tracked"):
            raise WeightsError(f"weights lack {name} of {backbone}: set encoder.backbone to their architecture")
    model.load_state_dict({k: v for k, v in state.items() if v.shape == expected[k].shape}, strict=False)
    encoder.trunk.load_state_dict(_trunk_of(model, backbone).state_dict())
    layers = {f"{i}.{part}": f"classifier.{i}.{part}" for i in (0, 3) for part in ("weight", "bias")}
    neck = encoder.branches.neck.state_dict()
    if set(neck) == set(layers) and all(v in state and state[v].shape == neck[k].shape for k, v in layers.items()):
        encoder.branches.neck.load_state_dict({k: state[v] for k, v in layers.items()})


def to_input(grey_bss: Tensor) -> Tensor:
    """(b, s, s) grey levels, uint8 0..255 or floats 0..1 -> (b, 3, s, s) normalised input."""
    grey = grey_bss.float() / 255 if grey_bss.dtype == torch.uint8 else grey_bss
    mean = torch.tensor(MEAN, device=grey.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=grey.device).view(1, 3, 1, 1)
    return (grey[:, None] - mean) / std
