import hashlib
import json
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torchvision

from mrcg.config.loading import load_config
from mrcg.encoder.model import Encoder, load_pretrained, to_input
from mrcg.encoder.pretrained import resolve_weights
from mrcg.encoder.spec import EncoderSpec, fingerprint, read_spec, spec_bytes
from mrcg.encoder.trainer import new_encoder
from mrcg.errors import SettingsError, WeightsError

SPEC = EncoderSpec(
    backbone="resnet18", head="pooled", embedding_dim=8, input_size=32, dropout=0.0, precision="fp32",
    channels_last=False, classes=("a", "b"),
)  # fmt: skip


def settings(*overrides):
    return load_config(None, ["encoder.embedding_dim=8", "encoder.input_size=32", *overrides]).encoder


@pytest.mark.parametrize(
    "backbone", ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121", "efficientnet_b0", "convnext_tiny"]
)
def test_any_backbone_embeds_and_classifies(backbone):
    encoder = Encoder(SPEC.model_copy(update={"backbone": backbone})).eval()
    embeddings, logits = encoder(torch.zeros(2, 3, 32, 32))
    assert embeddings.shape == (2, 8)
    assert logits.shape == (2, 2)


def test_the_papers_recipe_is_vgg16_with_its_head_and_a_thousand_dimensions():
    spec = EncoderSpec.of(load_config("paper", []).encoder, ("a", "b"))
    assert (spec.backbone, spec.head, spec.embedding_dim, spec.input_size) == ("vgg16", "paper", 1000, 224)


def test_the_papers_head_on_vgg16_with_frozen_convolutions():
    encoder = new_encoder(settings("encoder.backbone=vgg16"), ("a", "b"), 1, None)
    assert not any(p.requires_grad for p in encoder.trunk.parameters())
    assert [layer.out_features for layer in encoder.branches.neck if isinstance(layer, torch.nn.Linear)] == [4096, 4096]
    assert encoder.branches.neck[0].in_features == 25088
    assert encoder(torch.zeros(1, 3, 32, 32))[0].shape == (1, 8)


@pytest.mark.parametrize("freeze", [0, 2, 5, "none", "convolutions"])
def test_modules_are_frozen_with_their_running_means(freeze):
    encoder = new_encoder(settings("encoder.backbone=resnet18", f"encoder.freeze={freeze}"), ("a", "b"), 1, None)
    count = {"none": 0, "convolutions": 8}.get(freeze, freeze)
    before = {k: v.clone() for k, v in encoder.trunk.state_dict().items()}
    encoder.train()(torch.randn(4, 3, 32, 32))[0].sum().backward()
    for number, module in enumerate(encoder.trunk):
        assert all((p.grad is None) == (number < count) for p in module.parameters())
        same = {k: torch.equal(v, before[f"{number}.{k}"]) for k, v in module.state_dict().items()}
        if number < count:
            assert all(same.values())
        else:
            assert not any(same[k] for k in same if k.endswith("running_mean"))
    assert encoder.branches.training


def test_freezing_more_modules_than_the_trunk_has_is_rejected():
    with pytest.raises(SettingsError, match="encoder.freeze = 9: the trunk of resnet18 has 8 modules; lower it"):
        new_encoder(settings("encoder.backbone=resnet18", "encoder.freeze=9"), ("a", "b"), 1, None)


@pytest.mark.parametrize("change", [{"channels_last": True}, {"precision": "bf16"}])
def test_memory_format_and_precision_change_little(change):
    torch.manual_seed(1)
    plain, other = Encoder(SPEC).eval(), Encoder(SPEC.model_copy(update=change)).eval()
    other.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected, embeddings = plain(x)[0], other(x)[0]
    assert embeddings.dtype == torch.float32
    assert torch.allclose(expected, embeddings, atol=1e-4 if "channels_last" in change else 0.1)


def test_unknown_backbone():
    with pytest.raises(SettingsError, match=r"encoder.backbone = vgg61: torchvision has no model of this name"):
        Encoder(SPEC.model_copy(update={"backbone": "vgg61"}))


def test_pretrained_weights_are_loaded_into_the_trunk():
    source = torchvision.models.resnet18(weights=None)
    encoder = Encoder(SPEC)
    load_pretrained(encoder, {k: v for k, v in source.state_dict().items() if not k.startswith("fc.")})
    assert torch.equal(encoder.trunk[0].weight, source.conv1.weight)


@pytest.mark.parametrize("other", ["mobilenet_v2", "resnet34", "resnet50"])
def test_weights_of_another_architecture_are_rejected_with_the_first_mismatch(other):
    state = torchvision.models.get_model(other, weights=None).state_dict()
    with pytest.raises(
        WeightsError, match=r"weights .*(resnet18 does not have|resnet18 expects).*: set encoder.backbone"
    ):
        load_pretrained(Encoder(SPEC), state)


def test_incomplete_weights_name_what_is_missing():
    state = torchvision.models.resnet18(weights=None).state_dict()
    del state["layer1.0.conv1.weight"]
    with pytest.raises(WeightsError, match=r"weights lack layer1.0.conv1.weight of resnet18: set encoder.backbone"):
        load_pretrained(Encoder(SPEC), state)


def test_weights_are_resolved_by_content(tmp_path):
    data = safetensors.torch.save({"x": torch.ones(2)})
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(data)
    first, second = (resolve_weights(settings(f"encoder.weights={tmp_path / name}.safetensors")) for name in ("a", "b"))
    assert first.digest == second.digest
    assert first.to_safetensors() == data
    assert resolve_weights(settings("encoder.weights=none")).to_safetensors() is None


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("nowhere.safetensors", "no such file"),
        ("README.md", "not a safetensors file"),
        ("http://127.0.0.1:9/w.safetensors", "cannot be fetched .*: set encoder.weights to none or to"),
    ],
)
def test_unavailable_weights_are_rejected(weights, message, tmp_path, monkeypatch):
    monkeypatch.setenv("MRCG_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=message):
        resolve_weights(settings(f"encoder.weights={weights}"))


def test_input_is_normalised_as_imagenet():
    x = to_input(torch.full((1, 2, 2), 255, dtype=torch.uint8))
    assert torch.allclose(x[0, :, 0, 0], torch.tensor([(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]))


def test_a_fingerprint_depends_on_architecture_and_weights():
    wider = SPEC.model_copy(update={"embedding_dim": 9})
    assert len({fingerprint(SPEC, b"a"), fingerprint(SPEC, b"b"), fingerprint(wider, b"a")}) == 3


def test_a_mirrored_encoder_embeds_an_image_like_its_mirror_image():
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plain, mirrored = (
        new_encoder(settings("encoder.backbone=resnet18", f"encoder.mirror={mirror}"), ("a", "b"), 1, None).eval()
        for mirror in ("false", "true")
    )
    with torch.inference_mode():
        expected = (plain.features(images) + plain.features(images.flip(-1))) / 2
        assert not torch.allclose(plain.features(images), expected, rtol=1e-3)
        assert torch.equal(mirrored.features(images), expected)
        assert torch.equal(mirrored(images)[0], mirrored(images.flip(-1))[0])


@pytest.mark.parametrize("freeze", ["none", 3, "convolutions"])
def test_a_trunk_that_is_trained_sees_one_view(freeze):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    plain, mirrored = (Encoder(SPEC.model_copy(update={"mirror": mirror})) for mirror in (False, True))
    mirrored.load_state_dict(plain.state_dict())
    for encoder in (plain, mirrored):
        encoder.freeze(freeze)
        encoder.train()
    # The branches on a frozen trunk are trained on what they get later, whether its features are stored or not.
    assert torch.equal(plain.features(images), mirrored.features(images)) == (freeze != "convolutions")


def test_an_encoder_of_a_later_version_of_mrcg_is_refused_in_a_line():
    facts = {"fingerprint": "ab", "spec": {**SPEC.model_dump(), "rotation": 4}}
    artefact = SimpleNamespace(
        manifest=SimpleNamespace(version="v1"), read_bytes=lambda name: json.dumps(facts).encode()
    )
    with pytest.raises(WeightsError, match=r"^encoder v1: rotation in encoder.json is not valid in this version"):
        read_spec(artefact)


def test_an_encoder_that_needs_nothing_new_is_described_as_before():
    assert "mirror" not in json.loads(spec_bytes(SPEC, "ab"))["spec"]
    assert json.loads(spec_bytes(SPEC.model_copy(update={"mirror": True}), "ab"))["spec"]["mirror"]


def test_an_encoder_of_before_mirrored_views_keeps_its_fingerprint():
    earlier = (
        b'{"backbone":"resnet18","head":"pooled","embedding_dim":8,"input_size":32,"dropout":0.0,'
        b'"precision":"fp32","channels_last":false,"classes":["a","b"]}'
    )
    assert fingerprint(SPEC, b"weights") == hashlib.blake2b(earlier + b"weights", digest_size=8).hexdigest()
    assert fingerprint(SPEC.model_copy(update={"mirror": True}), b"weights") != fingerprint(SPEC, b"weights")
