"""The plan of a comparison: methods, each with its training settings, over the same seeds, data and rates.

In: a TOML file, or the names of several training configurations. Out: a `Plan`. It knows nothing of data, weights
or estimates.

    title = "Rank of the shared LoRA"
    seeds = [0, 1, 2]
    rates = [1e-3, 3e-3]            # learning rates to choose from; left out: each configuration's own
    reference = "rank 4"            # the others are compared with it
    splits = ["test"]               # what is reported

    [config]                        # of every method that does not extend something else
    extends = "lora"

    [[methods]]
    name = "rank 4"
    config = { mole = { shared_rank = 4 } }
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from clipmole.config import LOCATION_SETTINGS, MOST_RATE, Config, TrainConfig
from clipmole.data import VARIANTS, Variant
from clipmole.errors import ConfigError
from clipmole.plumbing.json_toml import flattened, read_toml
from clipmole.training.presets import EXTENDS, built_on, load_train_config, resolved

Rate = Annotated[float, Field(gt=0, le=MOST_RATE)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Method(Config):
    """One line of the comparison.

    Attributes:
        config: its training settings; seed and rate are the plan's.
        rates: to choose from, instead of the plan's.
        against: the method that it is compared with, instead of the plan's reference.
        reported: what its authors report, and on what; printed, and compared with nothing.
    """

    name: str = Field(min_length=1)
    config: TrainConfig
    rates: tuple[Rate, ...] | None = None
    against: str | None = None
    reported: str = ""


class Plan(Config):
    """A whole comparison.

    Attributes:
        name: of the report's files.
        note: caveats, printed in the report.
        seeds: every method is trained with each; the rate is chosen with the first.
        rates: learning rates to choose from; (): each method's own.
        reference: the method that the others are compared with; None: the first.
        splits: what is reported; never train, val or calibration, which choose.
        variants: in which the splits are reported.
        kept_views: score the splits like validation, on a centre crop (and the whole, if the detector looks at it);
            methods with cached_views keep their tokens and share them. Otherwise the finished detector scores them.
    """

    name: str
    title: str
    note: str = ""
    methods: tuple[Method, ...] = Field(min_length=2)
    seeds: tuple[Seed, ...] = Field((0, 1, 2), min_length=1)
    rates: tuple[Rate, ...] = ()
    reference: str | None = None
    splits: tuple[str, ...] = Field(("test",), min_length=1)
    variants: tuple[Variant, ...] = Field(VARIANTS, min_length=1)
    kept_views: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [method.name for method in self.methods]
        for what, values in (("methods", names), ("seeds", self.seeds), ("splits", self.splits)):
            if len(set(values)) < len(values):
                raise ValueError(f"{what}: {', '.join(map(str, values))}: each may occur once")
        if not self.name or set("/\\\0") & set(self.name):
            raise ValueError(f"name {self.name!r}: files are named so; leave out / and \\")
        for key, name in (("reference", self.reference), *(("against", method.against) for method in self.methods)):
            if name is not None and name not in names:
                raise ValueError(f"{key} {name!r}: is none of the methods {', '.join(names)}")
        for split in self.splits:
            if split in ("train", "val", "calibration"):
                raise ValueError(f"splits: {split!r} is used to train or to choose; report another")
        return self

    def pairs(self) -> list[tuple[str, str]]:
        """(reference, method) of every paired difference."""
        reference = self.reference or self.methods[0].name
        pairs = [(method.against or reference, method.name) for method in self.methods]
        return [pair for pair in pairs if pair[0] != pair[1]]

    def rates_of(self, method: Method) -> tuple[float, ...]:
        """Learning rates that a method chooses from, ascending; its configuration's own if there is no choice."""
        rates = self.rates if method.rates is None else method.rates
        return tuple(sorted(set(rates))) or (rate_of(method.config),)


def rate_of(config: TrainConfig) -> float:
    """The learning rate of the part that a run mainly trains."""
    return config.tower_learning_rate if config.full_finetune else config.learning_rate


def with_rate(config: TrainConfig, rate: float) -> TrainConfig:
    """The configuration with another learning rate for the part that it mainly trains."""
    return config.model_copy(update={"tower_learning_rate" if config.full_finetune else "learning_rate": rate})


def wider(rates: Sequence[float], best: float) -> float | None:
    """The next rate to try if `best` is the lowest or highest of two or more `rates`; else None.

    Rates continue in the series 1, 3, 10, 30, ...: half decades, rounded to one digit.
    """
    if len(rates) < 2 or min(rates) < best < max(rates):
        return None
    step = 1 if best == max(rates) else -1
    return float(f"{10 ** ((round(2 * math.log10(best)) + step) / 2):.0e}")


def load_plan(path: str | Path) -> Plan:
    """The plan of a TOML file. Raises `ConfigError`, with the file, the key and the value."""
    file = Path(path)
    values = read_toml(file)
    base, methods = values.pop("config", {}), values.get("methods", [])
    if not isinstance(base, dict) or not isinstance(methods, list):
        raise ConfigError(f"{file}: config must be a table, [config], and methods must be tables, [[methods]]")
    shared = resolved(base, file.parent, str(file))
    for i, method in enumerate(methods):
        own = method.get("config", {}) if isinstance(method, dict) else None
        if not isinstance(own, dict):
            raise ConfigError(f"{file}: methods.{i}: is a table with a name and a table config")
        if EXTENDS in own:
            method["config"] = resolved(own, file.parent, str(file))
        else:
            method["config"] = built_on(shared, own, str(file))
    return Plan.parse({"name": file.stem} | values, str(file))


def plan_of(configs: Mapping[str, str], **settings: Any) -> Plan:
    """A plan of several training configurations, name -> preset or TOML file; `settings` as `Plan`'s."""
    methods = [{"name": name, "config": load_train_config(spec)} for name, spec in configs.items()]
    return Plan.parse({"name": "compare", "title": " against ".join(configs), "methods": methods} | settings, "options")


def differing(configs: Mapping[str, TrainConfig]) -> dict[str, dict[str, Any]]:
    """Setting -> name -> value, for the settings in which the configurations differ, except rates and paths."""
    flat = {name: flattened(config.model_dump(mode="json")) for name, config in configs.items()}
    keys = [
        key for key in next(iter(flat.values())) if not key.endswith("learning_rate") and key not in LOCATION_SETTINGS
    ]
    table = {key: {name: values[key] for name, values in flat.items()} for key in keys}
    return {key: row for key, row in table.items() if len({str(value) for value in row.values()}) > 1}
