"""A comparison of training methods -> a page of Markdown.

In: a `Comparison`. Out: text. It knows nothing of runs, images or files.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence

from clipmole.evaluation.records import ComparedMethod, Comparison
from clipmole.report.page import markdown_table

NOT_VERSIONS = ("command", "seeds", "resamples", "data digest")  # of the recipe; the rest are versions and hardware
# Settings that change the views of images or their order; they are named by how they begin.
VIEW_SETTINGS = ("augment.", "preprocess.", "per_class", "sampling", "batch_size")


def comparison_page(comparison: Comparison) -> str:
    """The page: average precision with intervals, paired differences, and how they were made."""
    recipe = comparison.recipe
    columns = list(comparison.methods[0].estimates)
    seeds = recipe["seeds"]
    backbones = ", ".join(sorted({f"`{method.backbone}`" for method in comparison.methods}))
    counted = "; ".join(f"`{split}` {real} + {ai}" for split, (real, ai) in comparison.images.items())
    lines = [f"# {comparison.title}", ""]
    if comparison.note:
        lines += [comparison.note, ""]
    lines += [
        f"Average precision, mean over {len(seeds)} seed{'s' * (len(seeds) > 1)}, with a 95 % bootstrap interval over "
        f"images (photographs + generated: {counted}). *Equalised*: every image re-encoded by one rule. Learning rate "
        "and epoch were chosen on `val`. Average precision depends on the share of generated images: compare methods "
        "within a column only.",
        "",
        *escaped_table(
            ["method", *columns], ([m.name, *(str(m.estimates[c]) for c in columns)] for m in comparison.methods)
        ),
        "",
        "Paired differences on the same images, averaged over the seeds:",
        "",
        *difference_table(comparison, columns),
        "",
        *seed_table(comparison, columns),
        "What was trained:",
        "",
        *escaped_table(
            ["method", "trained", "rate", "val AP by rate, first seed", "val AP", "s / epoch", "crops/s"],
            (
                [
                    m.name,
                    f"{m.trained_parameters:,}",
                    f"{m.learning_rate:g}{' (edge)' if m.on_edge else ''}",
                    ", ".join(f"{rate:g}: {shown(value)}" for rate, value in m.val_by_rate.items()),
                    spread(m.val),
                    f"{m.seconds_per_epoch:.1f}",
                    "-" if m.crops_per_second is None else f"{m.crops_per_second:.1f}",
                ]
                for m in comparison.methods
            ),
        ),
        "",
        *settings(comparison.methods),
        *reports(comparison.methods),
        f"Seeds {', '.join(map(str, seeds))}; {recipe['resamples']} resamples; training data digest "
        f"`{recipe['data digest'][:12]}`; backbone {backbones}. "
        + "; ".join(f"{key} {setting_text(recipe[key])}" for key in recipe if key not in NOT_VERSIONS)
        + ".",
    ]
    if recipe["command"]:
        lines += ["", "```bash", recipe["command"], "```"]
    return "\n".join(lines) + "\n"


def difference_table(comparison: Comparison, columns: Sequence[str]) -> list[str]:
    """One row per pair, one column per split and condition."""
    rows: dict[str, dict[str, str]] = {}
    for each in comparison.differences:
        f = each.estimate
        cell = f"{f.value:+.3f} [{f.low:+.3f}, {f.high:+.3f}]"
        rows.setdefault(f"{each.first} minus {each.second}", {})[f"{each.set}, {each.condition}"] = cell
    return escaped_table(["", *columns], ([name, *(row[c] for c in columns)] for name, row in rows.items()))


def seed_table(comparison: Comparison, columns: Sequence[str]) -> list[str]:
    """The lowest and highest result of the seeds; nothing if there is only one seed."""
    if len(comparison.recipe["seeds"]) == 1:
        return []
    rows = ([m.name, *(spread(m.seeds[c]) for c in columns)] for m in comparison.methods)
    return ["The seeds apart, lowest to highest:", "", *escaped_table(["method", *columns], rows), ""]


def settings(methods: Sequence[ComparedMethod]) -> list[str]:
    """The settings in which the methods differ, one per row; nothing if they do not differ."""
    keys = list(methods[0].settings)
    if not keys:
        return []
    rows = ([f"`{key}`", *(setting_text(m.settings[key]) for m in methods)] for key in keys)
    own_views = any(key.startswith(VIEW_SETTINGS) for key in keys)
    views = "" if own_views else ", and so, seed for seed, are the order of the images and their random views"
    return [
        f"Settings that differ; all others are the same{views}:",
        "",
        *escaped_table(["setting", *(m.name for m in methods)], rows),
        "",
    ]


def reports(methods: Sequence[ComparedMethod]) -> list[str]:
    """What the authors of the methods report, one method per row; nothing if nothing is known."""
    rows = [[m.name, m.reported] for m in methods if m.reported]
    if not rows:
        return []
    note = "What their authors report, with other towers on other data. It is not comparable with what stands above:"
    return [note, "", *escaped_table(["method", "reported"], rows, left=[0, 1]), ""]


def escaped_table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: Container[int] = (0,)) -> list[str]:
    """`markdown_table` for texts that may hold its separator, which is escaped."""
    return markdown_table(heads, [[cell.replace("|", "\\|") for cell in row] for row in rows], left)


def spread(values: Sequence[float]) -> str:
    """Lowest and highest of the seeds' values."""
    return f"{min(values):.3f} to {max(values):.3f}" if len(values) > 1 else f"{values[0]:.3f}"


def shown(value: float | None) -> str:
    """A result with three digits; None means that training diverged."""
    return "diverged" if value is None else f"{value:.3f}"


def setting_text(value: object) -> str:
    """A setting's value for people."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "-" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
