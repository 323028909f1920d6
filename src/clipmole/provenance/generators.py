"""Traces that image generators and editors leave in texts: prompts, parameters, their names.

In: the texts of a file's metadata. Out: findings. It knows nothing of file formats.

Sources: what the programs write themselves: AUTOMATIC1111's and Forge's `parameters`, ComfyUI's `prompt` and
`workflow`, InvokeAI's and NovelAI's fields, Fooocus' and SwarmUI's JSON, Midjourney's `Description`, Black Forest
Labs' EXIF tags, xAI's signature, the AIGC label of GB 45438-2025; IPTC Photo Metadata 2025.1 for the AI properties.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from clipmole.plumbing.text import one_line
from clipmole.provenance.findings import Finding, PointsTo, Strength
from clipmole.provenance.metadata import Text

_PARAMETERS = re.compile(r"\bSteps: \d{1,4}, .{0,400}?\b(?:Sampler|CFG scale|Seed|Size|Model)\b", re.DOTALL)
_VERSION = re.compile(r"\bVersion: ([^,\n]{1,40})")
_MIDJOURNEY = re.compile(r"\bJob ID: [0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_SIGNATURE = re.compile(r"^Signature: [A-Za-z0-9+/=]{40,}$")
_UUID = re.compile(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
_AIGC = re.compile(r"\bAIGC\b[\"':=\s{]{1,8}.{0,20}?[\"']?Label[\"']?\s*[:=]\s*[\"']?([123])", re.DOTALL)

# Names in fields where programs sign; word boundaries on both sides are added.
_GENERATORS = re.compile(
    r"(?<![\w])(Midjourney|DALL[·\-\s]?E(?:\s?[23])?|OpenAI|ChatGPT|gpt-image-\d|GPT-4o|Stable\s?Diffusion(?:\s?XL)?|"
    r"Stability\s?AI|DreamStudio|SDXL|AUTOMATIC1111|Novel\s?AI|InvokeAI|ComfyUI|Fooocus|SwarmUI|Easy Diffusion|"
    r"Draw Things|DiffusionBee|Mochi Diffusion|Adobe Firefly|Firefly Image|Text to Image|Google AI|Google Gemini|"
    r"Nano Banana|Google Imagen|Imagen [1-9]|Black Forest Labs|FLUX[.\-_]?1|FLUX[.\-_]?2|Ideogram|Leonardo\.?\s?Ai|"
    r"Playground AI|Recraft|Krea(?:\.ai)?|Grok(?: Image)?|xAI|Aurora by xAI|Bing Image Creator|Microsoft Designer|"
    r"Image Creator from Designer|Craiyon|NightCafe|DeepAI|Artbreeder|StarryAI|Wombo|Dream by WOMBO|Tensor\.Art|"
    r"SeaArt|Civitai|Seedream|Jimeng|Dreamina|Doubao|Kling ?AI|Hunyuan|Tongyi|Wanxiang|Qwen-Image|Meta AI|"
    r"Imagined with AI|AI[- ]generated|Generated (?:by|with|using) AI|text2image|txt2img|img2img)(?![\w])",
    re.IGNORECASE,
)
_EDITORS = re.compile(
    r"(?<![\w])(Adobe Photoshop(?! Lightroom)|Photoshop Express|GIMP|Affinity Photo|Snapseed|Canva|Pixlr|PicsArt|"
    r"FaceApp|Facetune|Remini|Luminar|Topaz|Gigapixel|Paint\.NET|Photopea|PhotoRoom|BeautyPlus|Meitu|VSCO|Fotor|"
    r"Pixelmator|Corel|PaintShop|Krita|Capture One|Lightroom|darktable|RawTherapee|DxO|ImageMagick|Google Photos)",
    re.IGNORECASE,
)
_DEVELOPERS = re.compile(r"Capture One|Lightroom|darktable|RawTherapee|DxO|ImageMagick|Google Photos", re.IGNORECASE)
_SIGNED_IN = {  # (place, name) in which a program or its maker signs; of the others a name is only a word
    "EXIF": {
        "Software", "ProcessingSoftware", "HostComputer", "Make", "Model", "Artist", "Copyright", "DocumentName",
        "XPAuthor", "XPComment", "ImageDescription", "UserComment",
    },
    "XMP": {
        "CreatorTool", "Credit", "softwareAgent", "Source", "creator", "AISystemUsed", "AISystemVersionUsed",
        "Software", "CaptionWriter", "rights", "description",
    },
    "IPTC": {
        "Originating Program", "Credit", "Source", "By-line", "Copyright Notice", "Special Instructions", "Caption",
    },
    "PNG text": {"Software", "Source", "Author", "Title", "Comment", "Copyright", "Description", "Creator"},
    "comment": {""},
}  # fmt: skip
_PROSE = {"ImageDescription", "UserComment", "description", "Caption", "Comment", "Description", "XPComment", ""}
_PROGRAM_FIELDS = {"Software", "ProcessingSoftware", "CreatorTool", "softwareAgent", "Originating Program"}
_AI_PROPERTIES = {  # IPTC Photo Metadata 2025.1
    "AIPromptInformation": "A prompt for an AI system",
    "AIPromptWriterName": "A writer of an AI prompt",
    "AISystemUsed": "An AI system is named",
    "AISystemVersionUsed": "A version of an AI system is named",
}


def find_generators(texts: Iterable[Text]) -> list[Finding]:
    """What each text says of a generator or an editor; of one text at most the first rule that fits."""
    found = []
    listed = list(texts)
    artists = {t.value.strip() for t in listed if t.name == "Artist"}
    for text in listed:
        for rule in _RULES:
            finding = rule(text)
            if finding is not None:
                found.append(finding)
                break
        else:
            if _SIGNATURE.match(text.value.strip()) and any(_UUID.match(artist) for artist in artists):
                found.append(
                    _finding(text, "A signature as xAI's Grok writes it", "ai-generated", "moderate", "Signature: ...")
                )
    return found


def _finding(text: Text, title: str, points_to: PointsTo, strength: Strength, detail: str | None = None) -> Finding:
    kind = "software" if points_to in ("edited", "neither") else "generator"
    detail = one_line(text.value if detail is None else detail)
    return Finding(
        kind=kind, title=title, detail=detail, points_to=points_to, strength=strength, key=one_line(text.key, 80)
    )


def _webui(text: Text) -> Finding | None:
    """AUTOMATIC1111, Forge, SD.Next and the sites that copy their line of parameters."""
    match = _PARAMETERS.search(text.value[: 2**16])
    if match is None:
        return None
    version = _VERSION.search(text.value[match.start() : match.start() + 4000])
    program = f" ({one_line(version[1], 40)})" if version else ""
    return _finding(
        text, f"Generation parameters of Stable Diffusion WebUI or alike{program}", "ai-generated", "strong"
    )


def _parse(value: str) -> Any:
    """JSON, or None: of hostile depth or size too."""
    if len(value) >= 2**20 or value.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return None


def _comfyui(text: Text) -> Finding | None:
    """ComfyUI: its graph as JSON under "prompt" and "workflow"; in EXIF behind that word and a colon."""
    head, _, rest = text.value.partition(":")
    prefixed = head.strip().lower() in ("prompt", "workflow")
    graph = _parse(rest if prefixed else text.value)
    if not isinstance(graph, dict):
        return None
    nodes = graph.get("nodes") if isinstance(graph.get("nodes"), list) else list(graph.values())
    assert isinstance(nodes, list)
    kinds = [n.get("class_type") or n.get("type") for n in nodes[:5000] if isinstance(n, dict)]
    names = [kind for kind in kinds if isinstance(kind, str)]
    is_graph = any(isinstance(n, dict) and "class_type" in n for n in nodes) or ("nodes" in graph and "links" in graph)
    if not is_graph or not names:
        return None
    detail = "nodes: " + ", ".join(dict.fromkeys(names))
    if any("sampler" in name.lower() for name in names):
        if any(name.startswith("LoadImage") for name in names):
            return _finding(text, "A ComfyUI workflow that starts from an image", "ai-generated", "moderate", detail)
        return _finding(text, "A ComfyUI workflow", "ai-generated", "strong", detail)
    return _finding(text, "A ComfyUI workflow without a sampler", "edited", "moderate", detail)


def _json_record(text: Text) -> Finding | None:
    """Programs that leave their settings as a JSON object."""
    record = _parse(text.value)
    if not isinstance(record, dict):
        return None
    detail = text.value
    if "AIGC" in record and isinstance(record["AIGC"], dict):
        return _aigc_finding(text, str(record["AIGC"].get("Label", "")))
    if text.name in ("invokeai_metadata", "invokeai_graph", "sd-metadata", "invokeai"):
        return _finding(text, "Generation parameters of InvokeAI", "ai-generated", "strong", detail)
    if "sui_image_params" in record:
        return _finding(text, "Generation parameters of SwarmUI", "ai-generated", "strong", detail)
    keys = {str(key).lower().replace("_", "").replace(" ", "") for key in record}
    if (
        len(keys & {"prompt", "seed", "steps", "sampler", "cfgscale", "guidancescale", "negativeprompt", "scale", "uc"})
        > 2
    ):
        program = {"fooocus_scheme": "Fooocus", "Comment": "NovelAI"}.get(text.name, "")
        of = f" of {program}" if program and ("uc" in keys or program != "NovelAI") else ""
        return _finding(text, f"Generation parameters{of}", "ai-generated", "strong", detail)
    return None


def _invokeai(text: Text) -> Finding | None:
    if text.name == "Dream" and " -S" in text.value:
        return _finding(text, "A command line of InvokeAI", "ai-generated", "strong")
    return None


def _midjourney(text: Text) -> Finding | None:
    if not _MIDJOURNEY.search(text.value[: 2**16]):
        return None
    return _finding(text, "A prompt with a Midjourney job number", "ai-generated", "strong")


def _aigc_finding(text: Text, label: str) -> Finding:
    words = {"1": "is", "2": "may be", "3": "is suspected to be"}.get(label, "is said to be")
    strength: Strength = "strong" if label == "1" else "moderate"
    return _finding(text, f"An AIGC label: the content {words} AI-generated", "ai-generated", strength)


def _aigc(text: Text) -> Finding | None:
    """The implicit label of GB 45438-2025: {"AIGC": {"Label": "1", ...}}, in XMP a property TC260:AIGC."""
    if text.name == "AIGC":
        match = re.search(r"Label\W{1,6}([123])", text.value[:4000])
        return _aigc_finding(text, match[1] if match else "")
    match = _AIGC.search(text.value[:4000])
    return _aigc_finding(text, match[1]) if match else None


def _ai_property(text: Text) -> Finding | None:
    title = _AI_PROPERTIES.get(text.name) if text.place == "XMP" else None
    return _finding(text, f"{title} (IPTC)", "ai-generated", "strong") if title else None


def _generator_name(text: Text) -> Finding | None:
    """A generator's name in a field where programs sign; inside prose it is a hint only."""
    if text.name not in _SIGNED_IN.get(text.place, set()):
        return None
    match = _GENERATORS.search(text.value[:4000])
    if match is None:
        return None
    prose = text.name in _PROSE and len(text.value) > 60
    strength: Strength = "weak" if prose else "strong" if text.name in _PROGRAM_FIELDS else "moderate"
    return _finding(text, f"Names a generator: {one_line(match[1], 40)}", "ai-generated", strength)


def _editor_name(text: Text) -> Finding | None:
    if text.name not in _PROGRAM_FIELDS:
        return None
    match = _EDITORS.search(text.value[:4000])
    if match is None:
        return None
    if _DEVELOPERS.search(match[1]):
        return _finding(text, f"Passed through {one_line(match[1], 40)}", "neither", "weak")
    return _finding(text, f"Saved by an image editor: {one_line(match[1], 40)}", "edited", "moderate")


_RULES: tuple[Callable[[Text], Finding | None], ...] = (
    _webui, _comfyui, _json_record, _invokeai, _midjourney, _aigc, _ai_property, _generator_name, _editor_name,
)  # fmt: skip
