"""Load settings from a recipe (a YAML file with the values that differ from the defaults) and overrides."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mrcg.config.added_later import ADDED_LATER
from mrcg.config.settings import Config
from mrcg.errors import SettingsError


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Return all dotted keys of the tree, groups included, e.g. ``encoder`` and ``encoder.epochs``."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        keys.append(prefix + name)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += known_keys(annotation, f"{prefix}{name}.")
    return keys


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes, sorted."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def recipe_folder() -> Path:
    """Return the folder of the shipped recipes: in an installed wheel, or ``deploy/recipes`` of a checkout."""
    packaged = Path(str(importlib.resources.files("mrcg"))) / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "deploy" / "recipes"


def load_config(recipe: str | None = None, overrides: Iterable[str] = ()) -> Config:
    """Load the settings of a recipe and apply overrides.

    Args:
        recipe: name of a shipped recipe or path of a YAML file; None uses the defaults.
        overrides: each ``a.b=value``; the value is parsed as YAML.

    Raises:
        SettingsError: the recipe or a key is unknown, or a value is not allowed.
    """
    tree = _read_recipe(recipe) if recipe else {}
    return _apply_overrides(tree, f"recipe {recipe}" if recipe else "defaults", overrides)


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Apply overrides to the settings of a release, except to those that its models and gallery depend on.

    Raises:
        SettingsError: a key is unknown, a value is not allowed, or the models or gallery depend on the setting.
    """
    overrides = list(overrides)
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key.partition(".")[0] in ("seed", "ingest", "split", "encoder", "embed", "graph", "reranker"):
            raise SettingsError(
                f"--set {override}: the models or the gallery depend on {key}; change it with `mrcg run`"
            )
    return _apply_overrides(config.model_dump(mode="json"), "settings of the release", overrides)


def _apply_overrides(tree: dict[str, Any], where: str, overrides: Iterable[str]) -> Config:
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise SettingsError(f"--set {override}: write it as key=value, e.g. encoder.epochs=3")
        _assign(tree, key.strip(), text)
        where = f"{where} with --set {override}"
    return parse_config(tree, where)


def parse_config(tree: Mapping[str, Any], where: str = "settings") -> Config:
    """Validate a plain tree of settings; the error message reports the first problem in one line.

    Args:
        tree: nested keys and values.
        where: origin of the tree, for the error message.

    Raises:
        SettingsError: a key is unknown, or a value is not allowed.
    """
    try:
        return Config.model_validate(dict(tree))
    except ValidationError as error:
        raise SettingsError(f"{where}: {_explain(error)}") from error


def recorded(config: Config, group: str) -> dict[str, Any]:
    """Return the settings of a group as a manifest records them."""
    values: dict[str, Any] = getattr(config, group).model_dump(mode="json")
    absent = [name for name, value in ADDED_LATER.get(group, {}).items() if _includes(values[name], value)]
    return {name: value for name, value in values.items() if name not in absent}


def completed(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that a manifest records of a group, with those that did not exist when it was written."""
    return {**ADDED_LATER.get(group, {}), **values}


def _includes(value: Any, part: Any) -> bool:
    return all(value[key] == part[key] for key in part) if isinstance(part, dict) else bool(value == part)


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.0)
        return f"unknown key {key}; the nearest known key is {nearest[0]}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    return f"{key} = {first['input']!r} is not allowed: {first['msg'][:1].lower()}{first['msg'][1:]}"


class _WithoutRepeats(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping; YAML forbids it, and PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for (key, _), name in zip(node.value, keys, strict=True):
            if keys.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name} stands here twice", key.start_mark)
        return dict(super().construct_mapping(node, deep))


def _read_recipe(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if not path.suffix:
        path = recipe_folder() / f"{recipe}.yaml"
    try:
        tree = yaml.load(path.read_bytes(), _WithoutRepeats)  # in UTF-8 or UTF-16, as YAML says
    except OSError as error:
        names = ", ".join(recipe_names())
        raise SettingsError(f"no recipe {recipe}: use a shipped one ({names}) or the path of a .yaml file") from error
    except yaml.reader.ReaderError as error:
        raise SettingsError(f"recipe {recipe} is neither UTF-8 nor UTF-16: save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"recipe {recipe} is not valid YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"recipe {recipe}: expected keys and values at the top level, got {type(tree).__name__}")
    return tree


def _assign(tree: dict[str, Any], key: str, text: str) -> None:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {key}: {text!r} is not valid YAML") from error
    node: Any = tree
    *parents, leaf = key.split(".")
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise SettingsError(f"--set {key}: {part} is a value, not a group of keys")
    node[leaf] = value
