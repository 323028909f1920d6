"""Settings that come with the package by their name: a TOML file of one of its folders, or one of the user's own.

In: the name of a preset, or the path of a TOML file. Out: the settings. It knows nothing of what they mean.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TypeVar

from clipmole.config import Config
from clipmole.errors import ConfigError

AnyConfig = TypeVar("AnyConfig", bound=Config)


def packaged_names(folder: str) -> tuple[str, ...]:
    """Names of the TOML files in a folder of the package, sorted."""
    files = (resources.files("clipmole") / folder).iterdir()
    return tuple(sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml")))


def load_packaged(kind: type[AnyConfig], folder: str, name: str | Path) -> AnyConfig:
    """What the preset `name` of a folder of the package holds, or else a TOML file of that path.

    Raises `ConfigError` if there is neither, or if it does not validate.
    """
    if str(name) in packaged_names(folder):
        with resources.as_file(resources.files("clipmole") / folder / f"{name}.toml") as path:
            return kind.from_toml(path)
    if Path(name).is_file():
        return kind.from_toml(name)
    raise ConfigError(f"{folder} {str(name)!r}: neither a TOML file nor one of {', '.join(packaged_names(folder))}")
