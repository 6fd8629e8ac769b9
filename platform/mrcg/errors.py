"""Every error that a user of MRCG can meet, on one page.

::

    MrcgError                        exit 1
    ├── UsageError                   exit 2: the call or a setting is wrong
    │   ├── SettingsError            unknown key, invalid value, unknown recipe
    │   ├── MissingExtraError        a package of an optional extra is not installed
    │   └── FingerprintError         an embedding was made by another encoder
    ├── SourceError                  the source is missing, empty or has nothing usable
    ├── WeightsError                 weights cannot be fetched or belong to another architecture
    ├── ImageError                   one image cannot be used; carries a machine-readable reason
    ├── StoreError                   the store cannot be read or written
    │   ├── NotFoundError            no such version, release, image or file
    │   ├── AmbiguousError           one name stands for several things
    │   ├── AlreadyExistsError       another writer created the file first
    │   └── IntegrityError           stored bytes differ from what the manifest states
    ├── TrainingError                training cannot start or continue
    ├── ReleaseError                 a release cannot be promoted or rolled back
    │   └── LostRaceError            another process promoted or rolled back first
    ├── ForbiddenError               the caller is not authorised
    └── ServiceError                 a service cannot be reached or gave an unreadable answer
        ├── StageUnavailableError    a stage of the service cannot answer in time
        └── ReleaseNotLoadedError    this replica has not loaded the release

A message is one line: it names the thing (file, key, value) and the way out. A broken invariant is an ``assert``, not
one of these.

Every class has a ``code``, a stable word for programs. Errors cross processes by pickle, and Ray Data, files and HTTP
by code and message (``to_row``, ``from_row``): they arrive as the same class with the same text.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import ClassVar


class MrcgError(Exception):
    """Base of all errors whose message is meant for the user.

    Attributes:
        exit_code: of the command line.
        code: a stable snake_case word, the ``code`` of a problem over HTTP and the first word of gRPC details.
    """

    exit_code: ClassVar[int] = 1
    code = "internal"


class UsageError(MrcgError):
    """The call is wrong: arguments, settings or the installation."""

    exit_code = 2
    code = "invalid_request"


class SettingsError(UsageError):
    """A recipe or an override names an unknown key or an invalid value."""

    code = "invalid_settings"


class MissingExtraError(UsageError):
    """A package of an optional extra is not installed."""

    code = "missing_extra"


class FingerprintError(UsageError):
    """An embedding was made by another encoder than the release's."""

    code = "other_encoder"


class SourceError(MrcgError):
    """The source of scans is missing, empty or holds nothing usable."""

    code = "unusable_source"


class WeightsError(MrcgError):
    """Weights cannot be fetched, or do not fit the architecture."""

    code = "unusable_weights"


class ImageError(MrcgError):
    """One image cannot be used.

    Attributes:
        reason: a stable snake_case word, e.g. ``truncated``; a quarantine row has it, ``code`` is ``image_<reason>``.
    """

    code = "image"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = f"{ImageError.code}_{reason}"

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        # Pickle would rebuild an exception from its message alone.
        return type(self), (self.reason, str(self))


class StoreError(MrcgError):
    """The store cannot be read or written."""

    code = "store_failed"


class NotFoundError(StoreError):
    """The store has no such version, release, image or file."""

    code = "not_found"


class AmbiguousError(StoreError):
    """One name stands for several things of the store, and which is meant was not said."""

    code = "ambiguous"


class AlreadyExistsError(StoreError):
    """A create-only write came second: another writer created the file first."""

    code = "already_exists"


class IntegrityError(StoreError):
    """Bytes in the store differ from what a manifest states."""

    code = "damaged"


class TrainingError(MrcgError):
    """Training cannot start or continue."""

    code = "training_failed"


class ReleaseError(MrcgError):
    """A release cannot be promoted or rolled back."""

    code = "not_releasable"


class LostRaceError(ReleaseError):
    """Another process promoted or rolled back first."""

    code = "lost_race"


class ForbiddenError(MrcgError):
    """The caller is not authorised."""

    code = "forbidden"


class ServiceError(MrcgError):
    """A service cannot be reached, or its answer cannot be read."""

    code = "service_failed"


class StageUnavailableError(ServiceError):
    """A stage cannot answer in time; the search degrades or is refused."""

    code = "unavailable"


class ReleaseNotLoadedError(ServiceError):
    """This replica has not loaded the release, or has evicted it; another replica may have it."""

    code = "release_not_loaded"


def error_classes(base: type[MrcgError] = MrcgError) -> Iterator[type[MrcgError]]:
    """All classes of the tree, each before its subclasses."""
    yield base
    for subclass in base.__subclasses__():
        yield from error_classes(subclass)


def to_row(error: MrcgError) -> dict[str, str]:
    """An error as two strings, ``error`` (its code) and ``message``; ``from_row`` builds it again."""
    return {"error": error.code, "message": str(error)}


def from_row(row: Mapping[str, str]) -> MrcgError:
    """The error that ``to_row`` described; a ``MrcgError`` with its text where this version does not know the code."""
    return from_code(row["error"], row["message"]) or MrcgError(row["message"])


def from_code(code: str, message: str) -> MrcgError | None:
    """An error of the class with this code or, in old stores, this name; None where there is no such class."""
    image, _, reason = code.partition("_")
    if image == ImageError.code and reason:
        return ImageError(reason, message)
    for kind in error_classes():
        if code in (kind.code, kind.__name__) and kind is not ImageError:
            return kind(message)
    return None


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
    "cleanlab": "jobs",
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
