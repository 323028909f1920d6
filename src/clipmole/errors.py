"""Every error that clipmole raises on purpose, in one tree.

    ClipmoleError
    ├── ConfigError          a setting that is unknown, out of range or contradicts another
    │   └── TrainingDiverged     the loss is no longer finite: the learning rate is too high
    ├── MissingDependency    an optional library is not installed; the message names the extra
    ├── ImageError           one image cannot be scored; carries a stable `code`
    │   ├── ImageNotFound        "not_found"   no such file
    │   ├── ImageUnreadable      "unreadable"  empty, truncated, corrupt, or not an image
    │   ├── ImageTooLarge        "too_large"   more bytes or pixels than the limits allow
    │   └── ImageNotRead         "not_read"    a network or a disk failed to deliver its bytes
    ├── WeightsError         a backbone's weights
    │   ├── WeightsNotFound      not on disk, not in the cache, and no network to fetch them
    │   └── WeightsMismatch      missing, extra or misshapen tensors, or the wrong sha256
    ├── CheckpointError      an adapter directory: absent, unknown version, wrong backbone, damaged
    ├── DataError            a manifest or a data set: missing columns, labels, files
    ├── TrustListError       a list of certificates cannot be fetched
    └── Stopped              somebody asked long work to stop; the message says what is kept and how to continue

A message is one line that names the thing and the cure, and can be shown to a user as it is.
This module knows nothing of the others.
"""


class ClipmoleError(Exception):
    """Base of every error that clipmole raises on purpose."""


class ConfigError(ClipmoleError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class TrainingDiverged(ConfigError):
    """The training loss is no longer finite."""


class MissingDependency(ClipmoleError, ImportError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed; in clipmole's folder, run: pip install -e '.[{extra}]'")


class ImageError(ClipmoleError):
    """One image cannot be scored.

    Attributes:
        source: what was given: a path, escaped as in `Detection`, "<bytes>", "<array>" or "<image>".
        code: a stable, machine-readable reason.
    """

    code = "image_error"

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.source = source
        self.reason = reason


class ImageNotFound(ImageError):
    """There is no such file, or it may not be read."""

    code = "not_found"


class ImageUnreadable(ImageError):
    """The bytes are empty, truncated, corrupt, or not an image of a known format."""

    code = "unreadable"


class ImageTooLarge(ImageError):
    """The image has more bytes or pixels than the limits allow (or claims to: a decompression bomb)."""

    code = "too_large"


class ImageNotRead(ImageError):
    """The file is there, but a network or a disk failed to deliver its bytes."""

    code = "not_read"


class WeightsError(ClipmoleError):
    """A backbone's weights cannot be used."""


class WeightsNotFound(WeightsError):
    """The weights are not on disk, not in the cache, and cannot be fetched."""


class WeightsMismatch(WeightsError):
    """The weights do not fit the tower: missing, extra or misshapen tensors, or a wrong sha256."""


class CheckpointError(ClipmoleError):
    """An adapter directory is absent, damaged, of an unknown version, or made for another backbone."""


class DataError(ClipmoleError):
    """A manifest or data set is incomplete or contradictory."""


class TrustListError(ClipmoleError):
    """A list of certificates to trust cannot be fetched."""


class Stopped(ClipmoleError):
    """Somebody asked long work to stop; the message says what is kept and how to continue."""
