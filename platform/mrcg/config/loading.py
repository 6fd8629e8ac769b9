"""Load settings: a recipe (YAML that names what differs from the defaults) and overrides on top."""

from __future__ import annotations

import difflib
import importlib.resources
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mrcg.config.settings import Config
from mrcg.errors import SettingsError


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """All dotted keys of the tree, e.g. ``encoder.epochs``."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        keys.append(prefix + name)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += known_keys(annotation, f"{prefix}{name}.")
    return keys


def recipe_names() -> list[str]:
    """Names of the recipes that are shipped."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def recipe_folder() -> Path:
    """``deploy/recipes`` of a checkout, or its copy in an installed wheel."""
    packaged = Path(str(importlib.resources.files("mrcg"))) / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).parents[3] / "deploy" / "recipes"


def load_config(recipe: str | None = None, overrides: Iterable[str] = ()) -> Config:
    """The settings of a recipe with overrides on top.

    Args:
        recipe: name of a shipped recipe or a path of a YAML file; None takes the defaults.
        overrides: ``a.b=value`` each; the value is read as YAML.

    Raises:
        SettingsError: unknown recipe or key, or a value that is not allowed.
    """
    tree = _read_recipe(recipe) if recipe else {}
    return _overridden(tree, f"recipe {recipe}" if recipe else "defaults", overrides)


def with_overrides(config: Config, overrides: Iterable[str]) -> Config:
    """Settings of a release with overrides of what makes no model on top.

    Raises:
        SettingsError: unknown key, a value that is not allowed, or a setting that would make another model.
    """
    overrides = list(overrides)
    for override in overrides:
        group = override.partition("=")[0].strip().partition(".")[0]
        if group in ("seed", "ingest", "split", "encoder", "embed", "graph", "reranker"):
            raise SettingsError(f"--set {override}: the models and their gallery's rules stay; `mrcg run` makes others")
    return _overridden(config.model_dump(mode="json"), "settings of the release", overrides)


def _overridden(tree: dict[str, Any], where: str, overrides: Iterable[str]) -> Config:
    for override in overrides:
        key, sign, text = override.partition("=")
        if not sign:
            raise SettingsError(f"--set {override}: write it as key=value, e.g. encoder.epochs=3")
        _assign(tree, key.strip(), text)
        where = f"{where} with --set {override}"
    return parse_config(tree, where)


def parse_config(tree: Mapping[str, Any], where: str = "settings") -> Config:
    """Validate a plain tree; the first problem becomes one line.

    Raises:
        SettingsError: unknown key or a value that is not allowed.
    """
    try:
        return Config.model_validate(dict(tree))
    except ValidationError as error:
        raise SettingsError(f"{where}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.0)
        return f"unknown key {key}; the nearest known key is {near[0]}"
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    return f"{key} = {first['input']!r} is not allowed: {first['msg'][:1].lower()}{first['msg'][1:]}"


def _read_recipe(recipe: str) -> dict[str, Any]:
    path = Path(recipe)
    if not path.suffix:
        path = recipe_folder() / f"{recipe}.yaml"
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        names = ", ".join(recipe_names())
        raise SettingsError(f"no recipe {recipe}: shipped are {names}; or name a .yaml file") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"recipe {recipe} is not YAML: {' '.join(str(error).split())}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise SettingsError(f"recipe {recipe}: expected keys and values at the top, found {type(tree).__name__}")
    return tree


def _assign(tree: dict[str, Any], key: str, text: str) -> None:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {key}: {text!r} is not a YAML value") from error
    node: Any = tree
    *parents, leaf = key.split(".")
    for part in parents:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise SettingsError(f"--set {key}: {part} is a value, not a group of keys")
    node[leaf] = value
