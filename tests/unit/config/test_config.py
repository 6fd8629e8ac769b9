import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mrcg.config.loading import known_keys, load_config, recipe_names
from mrcg.config.settings import Config
from mrcg.errors import SettingsError


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
