"""Traces that image generators and editors leave in texts, as `rules.toml` describes them.

In: the texts of a file's metadata. Out: findings. It knows nothing of file formats, and what it knows of programs is in
the rules.
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache, cached_property
from importlib.resources import files
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from clipmole.plumbing.text import one_line
from clipmole.provenance.findings import Finding, PointsTo, Strength
from clipmole.provenance.texts import Text, untrusted_json
from clipmole.records import Record

_WINDOW = 2**16  # expressions are searched in so many characters at the beginning and at the end of a text
_NAMED_WITHIN = 4000  # a program's name is searched in so many characters at the beginning
_MAX_NODES = 5000  # of a graph
_OWNER = re.compile(r"\(c\)|©|copyright|created|made|generated|by|with|\d{4}|[^\w\s]", re.IGNORECASE)


class JsonKeys(Record):
    """Keys that a JSON object must have: each of `all`, and `at_least` so many of `some`.

    Their spelling does not matter: `cfg_scale` is "cfgScale" too.
    """

    all: tuple[str, ...] = ()
    some: tuple[str, ...] = ()
    at_least: int = 0


class GraphNodes(Record):
    """Whether the nodes of a ComfyUI graph must make an image, and whether they must load one."""

    makes: bool
    loads: bool


class Rule(Record):
    """One rule. The beginning of `rules.toml` says what the fields mean."""

    id: str
    where: tuple[str, ...]
    pattern: str | None = None
    with_name: bool = False
    names: tuple[str, ...] = ()
    whole: bool = False
    max_length: int | None = None
    labels: tuple[str, ...] = ()
    json_keys: JsonKeys | None = Field(None, alias="json")
    graph: GraphNodes | None = None
    present: bool = False
    beside: tuple[str, str] | None = None
    title: str
    version: str | None = None
    points_to: PointsTo
    strength: Strength
    example: tuple[tuple[str, str], ...] = Field(min_length=1)
    never: tuple[tuple[str, str], ...] = ()

    @model_validator(mode="after")
    def _has_one_condition(self) -> Rule:
        conditions = [self.pattern, self.names, self.labels, self.json_keys, self.graph, self.present or None]
        if sum(bool(c) or isinstance(c, JsonKeys) for c in conditions) != 1:
            raise ValueError(f"rule {self.id}: one of pattern, names, labels, json, graph, present")
        return self


class Rules(Record):
    """All of `rules.toml`.

    Attributes:
        lists: lists that rules refer to as "@NAME".
        rules: in the order in which they are tried.
    """

    lists: dict[str, tuple[str, ...]]
    rules: tuple[Rule, ...]

    def listed(self, items: Iterable[str]) -> Iterator[str]:
        """`items`, with each "@NAME" replaced by the items of that list."""
        for item in items:
            if item.startswith("@"):
                yield from self.lists[item[1:]]
            else:
                yield item


@cache
def load_rules() -> Rules:
    """The rules that come with clipmole."""
    return Rules.model_validate(tomllib.loads(files("clipmole.provenance").joinpath("rules.toml").read_text("utf-8")))


def find_generators(texts: Iterable[Text]) -> list[Finding]:
    """What the texts of a file say about generators and editors: for each text, what the first rule that fits finds."""
    listed = list(texts)
    found = []
    for text in listed:
        reading = _Reading(text)
        for rule in load_rules().rules:
            match = reading.match(rule, listed)
            if match is not None:
                found.append(_finding(rule, text, match))
                break
    return found


def rule_lines() -> Iterator[str]:
    """The rules in words for people: what each one means, where it looks, what it looks for, and its example."""
    rules = load_rules()
    for rule in rules.rules:
        toward = "context" if rule.points_to == "neither" else f"{rule.strength}: {rule.points_to}"
        yield f"{rule.id}: {rule.title} ({toward})"
        yield f"    in {', '.join(rules.listed(rule.where))}"
        yield f"    {_condition(rule)}" + (f"; beside {rule.beside[0]}" if rule.beside else "")
        key, value = rule.example[0]
        yield f"    for example {key}: {one_line(value, 100)}"


def _condition(rule: Rule) -> str:
    if rule.pattern:
        return f"text that matches {rule.pattern}"
    if rule.names:
        how = "nothing but a name of " if rule.whole else "a name of "
        return how + ", ".join(item.removeprefix("@") for item in rule.names)
    if rule.labels:
        return f"a line with {rule.labels[0]} and two of {', '.join(rule.labels[1:])}"
    if rule.json_keys:
        some = rule.json_keys.some and f"{rule.json_keys.at_least} of {', '.join(rule.json_keys.some)}"
        return "JSON" + " and".join(f" with {part}" for part in (", ".join(rule.json_keys.all), some) if part)
    if rule.graph:
        makes = "makes an image" if rule.graph.makes else "makes no image"
        return f"a ComfyUI graph that {makes} and {'loads one' if rule.graph.loads else 'loads none'}"
    return "anything"


class _Match(NamedTuple):
    """What a rule found: a program's name or the nodes of a graph, and the part of the text that may hold a version."""

    name: str
    region: str


def _finding(rule: Rule, text: Text, match: _Match) -> Finding:
    title = rule.title.format(name=one_line(match.name, 40))
    version = re.search(rule.version, match.region) if rule.version else None
    if version:
        title += f" ({one_line(version[1], 40)})"
    return Finding(
        kind="generator" if rule.points_to == "ai-generated" else "software",
        title=title,
        detail=one_line(match.name if rule.graph else text.value),
        points_to=rule.points_to,
        strength=rule.strength,
        key=one_line(text.key, 80),
    )


class _Reading:
    """One text as the rules read it; what several of them need is computed once."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.key = text.key
        value = text.value
        self.window = value if len(value) <= 2 * _WINDOW else f"{value[:_WINDOW]}\n{value[-_WINDOW:]}"

    @cached_property
    def record(self) -> Any:
        """The text as a JSON object, also if "prompt:" or "workflow:" stands before it; None if it is not one."""
        head, _, rest = self.text.value[:20].partition(":")
        prefixed = rest and head.strip().lower() in ("prompt", "workflow")
        parsed = untrusted_json(self.text.value[len(head) + 1 :] if prefixed else self.text.value)
        return parsed if isinstance(parsed, dict) else None

    @cached_property
    def keys(self) -> frozenset[str]:
        """The keys of the JSON object, as `_bare_key` spells them."""
        return frozenset(map(_bare_key, self.record or ()))

    @cached_property
    def nodes(self) -> list[str]:
        """Types of the nodes of a ComfyUI graph; [] if the text is not such a graph."""
        return list(dict.fromkeys(_node_types(self.record)))

    def match(self, rule: Rule, texts: Sequence[Text]) -> _Match | None:
        """What the rule finds in this text; None if it does not fit. `texts` are those of the whole file."""
        if not _where(rule.where).fits(self.key):
            return None
        found = self._condition(rule)
        if found is None or rule.beside is None:
            return found
        where, pattern = rule.beside
        there = any(text.key == where and re.search(pattern, text.value[:_WINDOW]) for text in texts)
        return found if there else None

    def _condition(self, rule: Rule) -> _Match | None:
        if rule.pattern is not None:
            subject = f"{self.text.name}: {self.window}" if rule.with_name else self.window
            return _Match("", subject) if re.search(rule.pattern, subject, re.DOTALL) else None
        if rule.names:
            return self._name(rule)
        if rule.labels:
            return self._labels(rule.labels)
        if rule.json_keys is not None:
            wanted = rule.json_keys
            fits = (
                self.record is not None
                and self.keys.issuperset(map(_bare_key, wanted.all))
                and len(self.keys.intersection(map(_bare_key, wanted.some))) >= wanted.at_least
            )
            return _Match("", self.window) if fits else None
        if rule.graph is not None:
            does = GraphNodes(makes=_any_of(self.nodes, "@comfyui_makes"), loads=_any_of(self.nodes, "@comfyui_loads"))
            return _Match("nodes: " + ", ".join(self.nodes), "") if self.nodes and does == rule.graph else None
        return _Match("", self.window)

    def _name(self, rule: Rule) -> _Match | None:
        value = self.text.value
        if rule.max_length is not None and len(value) > rule.max_length:
            return None
        found = _name_expression(rule.names).search(value[:_NAMED_WITHIN])
        if found is None:
            return None
        rest = value[: found.start()] + value[found.end() :]
        return None if rule.whole and (len(rest) > 100 or _OWNER.sub("", rest).strip()) else _Match(found[1], value)

    def _labels(self, labels: tuple[str, ...]) -> _Match | None:
        if f"{labels[0]}: " not in self.window:
            return None
        for line in self.window.split("\n"):
            found = set(_label_expression(labels).findall(line))
            if labels[0] in found and len(found) > 2:
                return _Match("", line)
        return None


class _Where(NamedTuple):
    """Which keys a rule looks at: all of them, or these and those that match one of the expressions."""

    everywhere: bool
    keys: frozenset[str]
    expressions: tuple[re.Pattern[str], ...]

    def fits(self, key: str) -> bool:
        return self.everywhere or key in self.keys or any(expression.match(key) for expression in self.expressions)


@cache
def _where(items: tuple[str, ...]) -> _Where:
    listed = list(load_rules().listed(items))
    globs = tuple(re.compile(fnmatch.translate(item)) for item in listed if "*" in item)
    return _Where("*" in listed, frozenset(item for item in listed if "*" not in item), globs)


@cache
def _name_expression(items: tuple[str, ...]) -> re.Pattern[str]:
    """Any of the names, between characters that are no letters."""
    names = "|".join(load_rules().listed(items))
    return re.compile(rf"(?<!\w)({names})(?![^\W\d_])", re.IGNORECASE)


@cache
def _label_expression(labels: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)({'|'.join(map(re.escape, labels))}): (?=\S)")


@cache
def _list_expression(name: str) -> re.Pattern[str]:
    return re.compile("|".join(load_rules().listed([name])))


def _any_of(nodes: Iterable[str], name: str) -> bool:
    return any(_list_expression(name).search(node) for node in nodes)


def _bare_key(key: object) -> str:
    """A JSON key in one spelling, the same for "cfg_scale" and "cfgScale"."""
    return str(key).lower().replace("_", "").replace(" ", "")


def _node_types(record: Any, depth: int = 0) -> Iterator[str]:
    """Types of the nodes of a ComfyUI graph and its subgraphs, or of the graphs that a JSON object holds.

    A graph may be saved to be run ("prompt") or to be edited ("workflow"); an object holds graphs under those names.
    """
    if not isinstance(record, dict):
        return
    nodes = record.get("nodes")
    if isinstance(nodes, list) and ("links" in record or depth):
        yield from _types(nodes, "type")
        definitions = record.get("definitions")
        for subgraph in (definitions.get("subgraphs") or ()) if isinstance(definitions, dict) else ():
            yield from _node_types(subgraph, depth + 1)
        return
    types = list(_types(list(record.values()), "class_type"))
    yield from types
    for name in ("prompt", "workflow", "extra_pnginfo") if not types and depth < 2 else ():
        inner = record.get(name)
        yield from _node_types(untrusted_json(inner) if isinstance(inner, str) else inner, depth + 1)


def _types(nodes: list[Any], key: str) -> Iterator[str]:
    for node in nodes[:_MAX_NODES]:
        kind = node.get(key) if isinstance(node, dict) else None
        if isinstance(kind, str) and kind:
            yield kind
