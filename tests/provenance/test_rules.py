"""The rules for what programs leave in metadata: each by its example, and by what it must not find."""

from __future__ import annotations

import io

import pytest
from PIL import PngImagePlugin
from tiny import picture
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.provenance import read_provenance
from clipmole.provenance.rules import Rule, find_generators, load_rules
from clipmole.provenance.texts import Text

PLACES = ("PNG text", "alpha bits", "EXIF", "XMP", "IPTC", "C2PA")
RULES = load_rules().rules


def text(key: str, value: str) -> Text:
    place = next((place for place in PLACES if key.startswith(f"{place} ")), key)
    return Text(place, key.removeprefix(place).strip(), value)


def png(**texts: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, value in texts.items():
        info.add_itxt(name, value)
    buffer = io.BytesIO()
    picture(0).save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_the_example_of_a_rule_is_found_by_it(rule: Rule) -> None:
    texts = [text(*each) for each in rule.example]
    found = [each for each in find_generators(texts) if each.key == texts[0].key]
    assert [(each.points_to, each.strength) for each in found] == [(rule.points_to, rule.strength)]
    assert found[0].title.startswith(rule.title.partition("{")[0])


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.never], ids=lambda rule: rule.id)
def test_what_only_looks_like_it_is_not_found(rule: Rule) -> None:
    for key, value in rule.never:
        for found in find_generators([text(key, value)]):
            assert not found.title.startswith(rule.title.partition("{")[0]), (key, value)


def test_no_two_rules_have_one_name() -> None:
    assert len({rule.id for rule in RULES}) == len(RULES)


def test_a_photographer_with_a_generators_name_is_no_generator() -> None:
    assert read_provenance(png(Author="Krea Hansen")).findings == ()


def test_a_prompt_of_400_kb_hides_no_parameters() -> None:
    long = "x " * 200_000 + "\nSteps: 30, Sampler: Euler a, CFG scale: 4, Seed: 1, Size: 512x512"
    (finding,) = read_provenance(png(parameters=long)).findings
    assert (finding.points_to, finding.strength) == ("ai-generated", "strong")


def test_the_command_prints_every_rule() -> None:
    result = CliRunner().invoke(app, ["provenance", "--rules"])
    assert result.exit_code == 0
    heads = [line.partition(":")[0] for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert heads == [rule.id for rule in RULES]
