"""Settings of a training run by name: the presets that come with the package, and files that build on them.

In: the name of a preset of `presets/*.toml`, or a TOML file of the same form. A file may begin with
`extends = "NAME"`, a preset or another file (relative to its own folder), and then says only what differs: tables
are merged key by key, everything else is replaced. `without = ["KEY"]` leaves out a setting of what is extended,
since TOML has no word for none. Out: a `TrainConfig`. It knows nothing of what a run does.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from clipmole.config import TrainConfig, packaged_names
from clipmole.errors import ConfigError
from clipmole.plumbing.json_toml import parse_toml, read_toml

OWN_IMAGES = "own-images"  # the preset for a user's own images, and the default
EXTENDS, WITHOUT = "extends", "without"


def preset_names() -> tuple[str, ...]:
    """Names of the training presets that come with the package, sorted."""
    return packaged_names("training/presets")


def preset_text(name: str) -> str:
    """The TOML file of a preset, with its comments; `ConfigError` if there is none of this name."""
    if name not in preset_names():
        raise ConfigError(f"preset {name!r}: is unknown; the presets are {', '.join(preset_names())}")
    return (resources.files("clipmole") / "training" / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def load_train_config(name: str | Path) -> TrainConfig:
    """The training settings of a preset or a TOML file.

    Raises `ConfigError` if there is neither, if a file cannot be read, or if the merged settings do not validate.
    """
    return TrainConfig.parse(resolved({EXTENDS: str(name)}, Path(), "config"), str(name))


def with_settings(config: TrainConfig, given: Sequence[str]) -> TrainConfig:
    """The configuration with settings given as text, such as "learning_rate=1e-3" or "mole.expert_ranks=[2, 4]".

    A value is written as in TOML; text needs no quotes, and `none` means no value. Raises `ConfigError`, with the
    setting.
    """
    changes: dict[str, Any] = {}
    for text in given:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise ConfigError(f"--set {text}: give KEY=VALUE, such as learning_rate=1e-3 or mole.shared_rank=8")
        try:
            parsed = None if value == "none" else parse_toml(f"value = {value}".encode())["value"]
        except ValueError:  # not TOML: text without quotes
            parsed = value
        *above, last = key.split(".")
        change: dict[str, Any] = {last: parsed}
        for part in reversed(above):
            change = {part: change}
        changes = merged(changes, change)
    return TrainConfig.parse(merged(config.model_dump(), changes), "--set")


def resolved(values: dict[str, Any], folder: Path, source: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """`values` of a training run merged onto what they extend, all the way down; `extends` and `without` are gone.

    Args:
        folder: from which paths in `values` are taken.
        source: the file that holds `values`, for messages.
        above: files that led here; extending one of them would never end.
    """
    if EXTENDS not in values:
        return built_on({}, values, source)
    name = values[EXTENDS]
    if not isinstance(name, str):
        raise ConfigError(f"{source}: {EXTENDS}: must be the name of a preset or a file (given: {name!r})")
    if name in preset_names():
        with resources.as_file(resources.files("clipmole") / "training" / "presets" / f"{name}.toml") as path:
            base, folder, key = read_toml(path), path.parent, name
    elif os.path.isfile(folder / name):  # False, too, of a name that no file can have
        path = folder / name
        base, folder, key = read_toml(path), path.parent, str(path.resolve())
    else:
        raise ConfigError(f"{source}: {name!r:.100} is neither a TOML file nor one of {', '.join(preset_names())}")
    if key in above:
        raise ConfigError(f"{source}: {EXTENDS} = {name!r} leads back to itself")
    return built_on(resolved(base, folder, name, (*above, key)), values, source)


def built_on(base: dict[str, Any], values: dict[str, Any], source: str) -> dict[str, Any]:
    """`base` without the settings in `without` of `values`, and with the others of `values`."""
    unwanted = values.get(WITHOUT, [])
    if not isinstance(unwanted, list) or not all(isinstance(key, str) and key in base for key in unwanted):
        raise ConfigError(f"{source}: {WITHOUT} = {unwanted!r}: must be a list of settings of what is extended")
    kept = {key: value for key, value in base.items() if key not in unwanted}
    return merged(kept, {key: value for key, value in values.items() if key not in (EXTENDS, WITHOUT)})


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`: tables key by key, anything else replaced. Neither argument is changed."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
