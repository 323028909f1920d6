"""The model card of a trained detector, as Markdown.

In: the record of the run (`train.json`) and the calibration. Out: text: what it is, what it saw, what it must not be
used for. It measures nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipmole.calibration import Calibration
from clipmole.config import Families
from clipmole.training.extend import history_lines
from clipmole.training.families import card_lines


def history(record: dict[str, Any]) -> list[str]:
    """The section on earlier training, for a detector that was extended; [] for others."""
    if not record.get("history"):
        return []
    rank, blocks = record["config"]["extension_rank"], ", ".join(map(str, record["adapted_blocks"]))
    step = (
        f"- This step added one separate LoRA of rank {rank} with a gate of its own to each of the blocks {blocks}. "
        "All that came before stayed as it was; where the gates are closed, so does the score."
        if rank
        else "- This step trained all of it further; what it knew before may be forgotten."
    )
    return ["## History", *history_lines(record["history"]), step, ""]


def model_card(record: dict[str, Any], calibration: Calibration | None, findings: Sequence[str]) -> str:
    """A model card (Markdown) of a training run: what it is, what it saw, what it must not be used for.

    Args:
        findings: sentences on the validation images and on what the verdicts promise.
    """
    data, best = record["data"], record["curve"][record["best_epoch"]]
    companion = record["config"]["mole"].get("companion")
    lines = [
        "---",
        "library_name: clipmole",
        "tags: [ai-generated-image-detection, image-forensics]",
        "---",
        "# AI-generated image detector",
        "",
        f"A clipmole adapter on the frozen backbone `{record['backbone']['id']}` "
        f"(weights sha256 `{record['backbone']['sha256'][:12]}...`).",
        f"{record['trained_parameters']:,} parameters were trained; the tower has {record['tower_parameters']:,}.",
        *([f"A second network beside it, `{companion}`, reads the pixels of a crop."] if companion else []),
        "",
        "## Training",
        f"- Data: {data['train']} training, {data['val']} validation and {data['calibration']} calibration images, "
        f"digest `{data['digest'][:12]}...`.",
        f"- Generators seen: {', '.join(data['generators'])}.",
        f"- Best epoch {record['best_epoch'] + 1} of {len(record['curve'])}: validation AP {best['val_ap']:.3f} "
        "on equalised windows. It was chosen by this figure, so expect less on other images.",
        f"- Made on {record['environment']['date']} with clipmole {record['environment']['clipmole']}, "
        f"torch {record['environment']['torch']}, on {record['environment']['cpu']}; all settings are in `train.json`.",
        "",
        *history(record),
        "## Verdicts",
    ]
    if calibration is None:
        lines.append("- Not calibrated: there was no calibration split, so it gives logits and no verdicts.")
    else:
        lines += [
            f"- Calibrated on {calibration.n_real} photographs and {calibration.n_generated} generated images, "
            f"{' and '.join(calibration.variants)}.",
            f"- AI-generated above probability {calibration.thresholds.generated:.3f}, real below "
            f"{calibration.thresholds.real:.3f}, uncertain between them.",
            "- The probability assumes as many generated images as photographs, of the kinds it was calibrated on.",
        ]
    lines += [
        *(f"- {finding}" for finding in findings),
        "",
        *(card_lines(Families.parse(record["families"], "families")) if "families" in record else []),
        "## Limits",
        "- A verdict is a likelihood, never a proof. Generators, cameras and edits that it has not seen, and strong "
        "resizing or compression, make it wrong more often than the figures above say.",
        "- If the training images have restricted terms, these may extend to what was trained on them.",
    ]
    return "\n".join(lines) + "\n"
