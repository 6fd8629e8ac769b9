"""Every error that a user of MRCG can meet, on one page.

::

    MrcgError                    exit 1
    ├── UsageError               exit 2: the call or a setting is wrong
    │   ├── SettingsError        unknown key, bad value, unknown recipe
    │   ├── MissingExtraError    a package of an extra is not installed
    │   └── FingerprintError     an embedding is of another encoder
    ├── SourceError              the source is absent, empty or has nothing usable
    ├── WeightsError             weights cannot be had or belong to another architecture
    ├── ImageError               one image cannot be used; carries a machine-readable reason
    ├── StoreError               the store cannot be read or written
    │   ├── NotFoundError        no such version, release or file
    │   ├── AlreadyExistsError   a create-only write came second
    │   └── IntegrityError       stored bytes are not those the manifest names
    ├── TrainingError            training cannot go on
    ├── ReleaseError             a release cannot be promoted or rolled back
    │   └── LostRaceError        somebody else was first
    ├── ForbiddenError           the caller may not come in
    └── ServiceError             a service could not be reached or refused the call

A message is one line: it names the thing (file, key, value) and the way out. A broken invariant is
an ``assert``, not one of these.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class MrcgError(Exception):
    """Base of all errors whose message is meant for the user."""

    exit_code = 1


class UsageError(MrcgError):
    """The call is wrong: arguments, settings or the installation."""

    exit_code = 2


class SettingsError(UsageError):
    """A recipe or an override names an unknown key or a value that is not allowed."""


class MissingExtraError(UsageError):
    """A package that an optional extra brings is not installed."""


class FingerprintError(UsageError):
    """An embedding is of another encoder than the release's."""


class SourceError(MrcgError):
    """The source of scans is absent, empty or holds nothing usable."""


class WeightsError(MrcgError):
    """Weights cannot be fetched, or do not fit the architecture."""


class ImageError(MrcgError):
    """One image cannot be used.

    Attributes:
        reason: stable snake_case code, e.g. ``truncated``; a quarantine row and an HTTP error carry it.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        # Exceptions cross processes; the default rebuilds them from the message alone.
        return type(self), (self.reason, str(self))


class StoreError(MrcgError):
    """The store cannot be read or written."""


class NotFoundError(StoreError):
    """No such version, release or file in the store."""


class AlreadyExistsError(StoreError):
    """A create-only write found that another writer was first."""


class IntegrityError(StoreError):
    """Bytes in the store are not those that a manifest names."""


class TrainingError(MrcgError):
    """Training cannot start or go on."""


class ReleaseError(MrcgError):
    """A release cannot be promoted or rolled back."""


class LostRaceError(ReleaseError):
    """Somebody else promoted or rolled back at the same moment, and was first."""


class ForbiddenError(MrcgError):
    """The caller may not come in."""


class ServiceError(MrcgError):
    """A service could not be reached or refused the call."""


#: Which extra brings a package, by the name it is imported as.
EXTRAS = {
    "torch": "embed",
    "torchvision": "embed",
    "safetensors": "embed",
    "openvino": "openvino",
    "nncf": "openvino",
    "faiss": "index",
    "torch_geometric": "train",
    "matplotlib": "train",
    "sklearn": "train",
    "threadpoolctl": "train",
    "ray": "jobs] or mrcg[serve",
    "fastapi": "serve",
    "prometheus_client": "serve",
    "grpc": "serve",
    "s3fs": "s3",
    "cryptography": "jobs",
    "pydicom": "imaging",
    "nibabel": "imaging",
    "h5py": "imaging",
    "scipy": "imaging",
}


def missing_extra(error: ModuleNotFoundError) -> MissingExtraError | None:
    """The error that names the extra, where the missing package belongs to one."""
    package = (error.name or "").split(".")[0]
    if package not in EXTRAS:
        return None
    return MissingExtraError(f"{package} is not installed: install mrcg[{EXTRAS[package]}]")


def require(module: str) -> ModuleType:
    """Import a module of an extra, or say which extra brings it.

    Raises:
        MissingExtraError: the module's package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (own := missing_extra(error)) is None:
            raise
        raise own from error
