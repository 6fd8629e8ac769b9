import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mrcg.config.loading import known_keys, load_config, recipe_names
from mrcg.config.settings import Config
from mrcg.errors import SettingsError

FROZEN = ("encoder.freeze=convolutions", "encoder.augment=false")


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_load(name):
    assert isinstance(load_config(name), Config)


def test_recipes_of_the_readme_are_shipped():
    assert {"demo", "paper", "mobilenet"} <= set(recipe_names())


def test_unknown_key_names_the_nearest_known_key():
    with pytest.raises(SettingsError, match=r"unknown key encoder\.epoch; the nearest known key is encoder\.epochs"):
        load_config("demo", ["encoder.epoch=3"])


def test_unknown_key_in_a_file(tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("encoder:\n  backbon: vgg16\n")
    with pytest.raises(SettingsError, match=r"mine\.yaml: unknown key encoder\.backbon; .* encoder\.backbone"):
        load_config(str(recipe))


def test_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(SettingsError, match=r"no recipe nothing: use a shipped one \(demo, mobilenet, paper\)"):
        load_config("nothing")


def test_value_out_of_range_names_key_and_value():
    with pytest.raises(SettingsError, match=r"split\.train_fraction = 2 is not allowed"):
        load_config(None, ["split.train_fraction=2"])


@pytest.mark.parametrize(
    ("overrides", "way_out"),
    [
        (["encoder.patience=3", "encoder.keep=last"], "set encoder.keep=best"),
        (["encoder.patience=3", "encoder.keep=best", "encoder.snapshots=2"], "set one of them to 0"),
        (["encoder.whiten=65", "encoder.embedding_dim=64"], r"at most encoder.embedding_dim \(64\)"),
        (["encoder.trunk_engine=openvino", "encoder.freeze=none"], "or encoder.trunk_engine=torch"),
        ([*FROZEN, "encoder.trunk_engine=openvino", "compute.use_gpu=true"], "compute.use_gpu=false"),
        (["encoder.whiten=64", "reranker.graphs=cross_fit"], "set encoder.whiten=0"),
        (["encoder.whiten=64", "encoder.snapshots=2"], "set encoder.whiten or encoder.snapshots to 0"),
        (["encoder.mining=explicit", "encoder.gather=true"], "set encoder.mining=batch_all"),
        (["encoder.freeze=convolutions", "encoder.augment=true"], "set encoder.cached_views above 1"),
        (["compute.encoder_workers_min=3", "compute.encoder_workers=2"], "lower it"),
        (["reranker.graphs=held_out"], "set split.held_out_fraction above 0"),
    ],
)
def test_settings_that_would_be_ignored_are_rejected(overrides, way_out):
    with pytest.raises(SettingsError, match=way_out):
        load_config("mobilenet", overrides)


@pytest.mark.parametrize("override", ["encoder.epochs", "seed.x=1", "seed=[1", "encoder=3"])
def test_invalid_overrides_are_rejected(override):
    with pytest.raises(SettingsError):
        load_config("demo", [override])


def test_recipe_that_is_not_a_mapping(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(SettingsError, match="expected keys and values at the top level, got list"):
        load_config(str(tmp_path / "list.yaml"))


def test_settings_are_frozen():
    with pytest.raises(ValidationError):
        load_config().seed = 2


@given(st.integers(min_value=0, max_value=1000))
def test_override_sets_the_value(epochs):
    assert load_config("demo", [f"encoder.epochs={epochs}"]).encoder.epochs == epochs


def test_known_keys_include_nested_keys():
    assert {"seed", "encoder.weights", "serve.gateway.cpus"} <= set(known_keys())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-sig"])
def test_a_recipe_may_be_in_any_encoding_of_yaml(encoding, tmp_path):
    text = "# größer\nencoder:\n  epochs: 3\n"
    data = b"\xff\xfe" + text.encode("utf-16-le") if encoding == "utf-16-le-sig" else text.encode(encoding)
    (tmp_path / "mine.yaml").write_bytes(data)
    assert load_config(str(tmp_path / "mine.yaml")).encoder.epochs == 3


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("# größer\nseed: 3\n".encode("latin-1"), r"recipe \S+ is neither UTF-8 nor UTF-16: save it as UTF-8"),
        (b"encoder:\n  epochs: 3\n  epochs: 4\n", r"epochs stands here twice .* line 2"),
        (b"seed: 1\nencoder: {}\nseed: 2\n", r"seed stands here twice .* line 1"),
    ],
)
def test_a_recipe_in_another_encoding_or_with_a_key_twice_is_refused_in_a_line(data, message, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(data)
    with pytest.raises(SettingsError, match=message) as raised:
        load_config(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(raised.value)
