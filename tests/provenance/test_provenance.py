"""What metadata say: made on the spot, as programs write them, and hostile."""

from __future__ import annotations

import csv
import io
import json
import re
import struct
import tracemalloc
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from signing import CREATED, Signer
from tiny import picture
from typer.testing import CliRunner

from clipmole.cli import app
from clipmole.errors import ImageNotFound, ImageTooLarge, ImageUnreadable
from clipmole.images.loading import ImageLimits
from clipmole.plumbing.text import MAX_LINE, one_line
from clipmole.provenance import CAUTION, Finding, Provenance, read_provenance
from clipmole.provenance.camera import find_camera
from clipmole.provenance.metadata import Metadata, read_metadata
from clipmole.provenance.source_type import source_type
from clipmole.provenance.trust_list import read_trust_list
from clipmole.provenance.xmp import UnsafeXMP, read_xmp

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # of damaged files

SCHEME = "http://cv.iptc.org/newscodes/digitalsourcetype/"
WEBUI = (
    "a red fox in the snow, <lora:detail:1>\nNegative prompt: blurry\nSteps: 28, Sampler: DPM++ 2M Karras, "
    "CFG scale: 7, Seed: 1234567890, Size: 512x768, Model hash: 6ce0161689, Model: v1-5-pruned, Version: v1.9.4"
)
COMFY = {
    "3": {"class_type": "KSampler", "inputs": {"seed": 1, "steps": 20}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd_xl_base_1.0.safetensors"}},
}
MIDJOURNEY = "a fox, 35 mm --ar 3:2 --v 6.0 Job ID: 0a1b2c3d-1111-4222-8333-444455556666"
UUID = "0a1b2c3d-1111-4222-8333-444455556666"


def png(**texts: str) -> bytes:
    """A PNG with texts; underscores in the keywords are spaces."""
    info = PngImagePlugin.PngInfo()
    for key, value in texts.items():
        info.add_text(key.replace("_", " "), value)
    return saved("PNG", pnginfo=info)


def saved(format: str = "JPEG", size: tuple[int, int] = (48, 40), **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture(0, *size).save(buffer, format, **options)
    return buffer.getvalue()


def exif(tags: dict[int, Any], inner: dict[int, Any] | None = None) -> Image.Exif:
    block = Image.Exif()
    for tag, value in tags.items():
        block[tag] = value
    for tag, value in (inner or {}).items():
        block.get_ifd(0x8769)[tag] = value
    return block


def xmp(body: str) -> bytes:
    """A packet around properties of rdf:Description."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        'xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
        'xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:TC260="http://www.tc260.org.cn/ns/AIGC/1.0/" '
        'xmlns:dcterms="http://purl.org/dc/terms/">'
        f"{body}</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end='w'?>"
    ).encode()


def iptc(fields: dict[int, bytes]) -> bytes:
    """An APP13 segment with IPTC IIM datasets of record 2, and a JPEG around it."""
    datasets = b"".join(b"\x1c\x02" + struct.pack(">BH", n, len(v)) + v for n, v in fields.items())
    resource = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(datasets)) + datasets + b"\0" * (len(datasets) % 2)
    body = b"Photoshop 3.0\0" + resource
    jpeg = saved()
    return jpeg[:2] + b"\xff\xed" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def chunk(kind: bytes, body: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def only(data: bytes) -> Finding:
    """The one finding of a file."""
    found = read_provenance(data)
    assert len(found.findings) == 1, found.findings
    return found.findings[0]


# -- nothing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "AVIF"])
def test_a_bare_file_says_nothing_and_that_is_said_to_prove_nothing(format: str) -> None:
    found = read_provenance(saved(format))
    assert (found.findings, found.not_checked) == ((), ())
    assert found.format.upper() == format
    assert found.caution == CAUTION
    assert "proves nothing" in CAUTION
    assert "Anybody can write" in CAUTION


def test_a_path_and_its_bytes_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(png(parameters=WEBUI))
    by_path, by_bytes = read_provenance(str(file)), read_provenance(file.read_bytes())
    assert by_path == read_provenance(file)
    assert by_path.source == str(file)
    assert by_bytes.source == "<bytes>"
    assert by_path.findings == by_bytes.findings
    assert Provenance.model_validate_json(by_path.model_dump_json()) == by_path


def test_what_is_no_image_is_an_image_error(tmp_path: Path) -> None:
    with pytest.raises(ImageUnreadable, match="not an image format"):
        read_provenance(b"%PDF-1.7")
    with pytest.raises(ImageUnreadable, match="empty"):
        read_provenance(b"")
    with pytest.raises(ImageNotFound):
        read_provenance(tmp_path / "absent.jpg")
    with pytest.raises(ImageTooLarge):
        read_provenance(saved(), limits=ImageLimits(max_bytes=100))


# -- generators -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "title", "strength"),
    [
        (png(parameters=WEBUI), "Generation parameters of Stable Diffusion WebUI or alike (v1.9.4)", "strong"),
        (png(prompt=json.dumps(COMFY)), "A ComfyUI workflow", "strong"),
        (
            png(workflow=json.dumps({"nodes": [{"type": "KSampler"}, {"type": "LoadImage"}], "links": []})),
            "A ComfyUI workflow that starts from an image",
            "moderate",
        ),
        (png(Description=MIDJOURNEY), "A prompt with a Midjourney job number", "strong"),
        (png(Dream='"a fox" -s 50 -S 42 -W 512'), "A command line of InvokeAI", "strong"),
        (
            png(Comment=json.dumps({"prompt": "fox", "steps": 28, "seed": 3, "scale": 6, "uc": "bad"})),
            "Generation parameters of NovelAI",
            "strong",
        ),
        (
            png(parameters=json.dumps({"sui_image_params": {"prompt": "fox"}})),
            "Generation parameters of SwarmUI",
            "strong",
        ),
        (png(Software="NovelAI"), "Names a generator: NovelAI", "strong"),
        (png(AIGC='{"Label": "1", "ContentProducer": "x"}'), "An AIGC label: the content is AI-generated", "strong"),
        (saved(exif=exif({0x010E: MIDJOURNEY})), "A prompt with a Midjourney job number", "strong"),
        (
            saved(exif=exif({}, {0x9286: b"UNICODE\0" + WEBUI.encode("utf-16-be")})),
            "Generation parameters of Stable Diffusion WebUI or alike (v1.9.4)",
            "strong",
        ),
        (
            saved(exif=exif({}, {0x9286: b"UNICODE\0" + WEBUI.encode("utf-16-le")})),
            "Generation parameters of Stable Diffusion WebUI or alike (v1.9.4)",
            "strong",
        ),
        (
            saved("WEBP", exif=exif({}, {0x9286: b"ASCII\0\0\0" + WEBUI.encode()})),
            "Generation parameters of Stable Diffusion WebUI or alike (v1.9.4)",
            "strong",
        ),
        (saved("WEBP", exif=exif({0x0110: "prompt:" + json.dumps(COMFY)})), "A ComfyUI workflow", "strong"),
        (
            saved(exif=exif({}, {0x9286: b"ASCII\0\0\0Made with OpenAI Labs"})),
            "Names a generator: OpenAI",
            "moderate",
        ),
        (saved(exif=exif({0x0131: "Adobe Firefly"})), "Names a generator: Adobe Firefly", "strong"),
        (saved("TIFF", tiffinfo={0x0131: "Ideogram AI"}), "Names a generator: Ideogram AI", "strong"),
        (saved(comment="CREATOR: DALL-E 3"), "Names a generator: DALL-E 3", "moderate"),
        (iptc({110: b"Made with Google AI"}), "Names a generator: Google AI", "moderate"),
        (
            saved(xmp=xmp("<TC260:AIGC>{&quot;Label&quot;:&quot;1&quot;}</TC260:AIGC>")),
            "An AIGC label: the content is AI-generated",
            "strong",
        ),
    ],
)
def test_generators_are_known_by_what_they_write(data: bytes, title: str, strength: str) -> None:
    finding = only(data)
    assert (finding.title, finding.strength, finding.points_to) == (title, strength, "ai-generated")
    assert finding.kind == "generator"


def test_keywords_with_underscores_and_compressed_texts_are_read() -> None:
    plain = saved("PNG")
    settings = b'{"app_version": "4.2"}'
    for extra in (
        chunk(b"tEXt", b"invokeai_metadata\0" + settings),
        chunk(b"zTXt", b"invokeai_metadata\0\0" + zlib.compress(settings)),
        chunk(b"iTXt", b"invokeai_metadata\0\1\0\0\0" + zlib.compress(settings)),
    ):
        before, behind = plain[:33] + extra + plain[33:], plain[:-12] + extra + plain[-12:]
        for data in (before, behind):  # also behind the pixels
            assert only(data).title == "Generation parameters of InvokeAI"
            assert only(data).key == "PNG text invokeai_metadata"


@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + WEBUI.encode("utf-16"),
        b"UNICODE\0" + WEBUI.encode("utf-8"),
        bytes(8) + WEBUI.encode(),
        WEBUI.encode(),
        b"JIS\0\0\0\0\0" + WEBUI.encode("iso2022_jp"),
    ],
)
def test_a_user_comment_is_read_in_whatever_code_it_is_written(comment: bytes) -> None:
    assert only(saved(exif=exif({}, {0x9286: comment}))).detail == one_line(WEBUI)


def test_black_forest_labs_tags_are_no_camera() -> None:
    tags = {0x0131: "AI generated;txt2img;flux", 0x010F: "Black Forest Labs", 0x0110: "flux.1-dev"}
    found = read_provenance(saved(exif=exif(tags))).findings
    assert {finding.points_to for finding in found} == {"ai-generated"}
    assert found[0].key == "EXIF Software"
    assert found[0].strength == "strong"


def test_a_signature_counts_as_groks_only_beside_an_artist_number() -> None:
    signature = "Signature: " + "QUJD" * 20
    finding = only(saved(exif=exif({0x010E: signature, 0x013B: UUID})))
    assert finding.title == "A signature as xAI's Grok writes it"
    assert read_provenance(saved(exif=exif({0x010E: signature, 0x013B: "Ann"}))).findings == ()


def test_words_that_only_look_like_generators_are_not_taken_for_them() -> None:
    texts = {
        "Title": "Imagen de la playa",
        "Comment": "influx of visitors; steps: 20, then a rest",
        "Author": "Leonardo",
    }
    assert read_provenance(png(**texts)).findings == ()
    assert read_provenance(png(prompt="why did the fox cross the road?")).findings == ()
    assert read_provenance(png(Comment='{"a": {"class": "KSampler"}}')).findings == ()


def test_a_name_inside_prose_is_a_hint_only() -> None:
    prose = "My neighbour compared her print with an image by Midjourney and could not tell which of them was which."
    assert only(saved(exif=exif({0x010E: prose}))).strength == "weak"


def test_a_workflow_without_a_sampler_speaks_of_editing() -> None:
    graph = {"1": {"class_type": "LoadImage"}, "2": {"class_type": "ImageUpscaleWithModel"}}
    finding = only(png(prompt=json.dumps(graph)))
    assert (finding.points_to, finding.kind) == ("edited", "software")


@pytest.mark.parametrize(
    ("software", "points_to", "strength"),
    [
        ("Adobe Photoshop 25.0 (Windows)", "edited", "moderate"),
        ("GIMP 2.10", "edited", "moderate"),
        ("Adobe Photoshop Lightroom Classic 11.3", "neither", "weak"),
    ],
)
def test_editors_are_named(software: str, points_to: str, strength: str) -> None:
    finding = only(saved(exif=exif({0x0131: software})))
    assert (finding.points_to, finding.strength, finding.kind) == (points_to, strength, "software")


# -- IPTC -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_digital_source_type_is_read_from_every_format(format: str) -> None:
    packet = xmp(f"<Iptc4xmpExt:DigitalSourceType>{SCHEME}trainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>")
    if format == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_itxt("XML:com.adobe.xmp", packet.decode())
        data = saved("PNG", pnginfo=info)
    elif format == "TIFF":
        data = saved("TIFF", tiffinfo={700: packet})
    else:
        data = saved(format, xmp=packet)
    finding = only(data)
    assert finding.kind == "digital_source_type"
    assert (finding.points_to, finding.strength) == ("ai-generated", "strong")
    assert finding.title == "IPTC digital source type: made by a trained AI model"
    assert finding.key == "XMP DigitalSourceType"


def test_source_types_in_every_spelling_and_what_they_speak_for() -> None:
    for term in ("trainedAlgorithmicMedia", SCHEME + "trainedAlgorithmicMedia/", "trainedalgorithmicmedia"):
        assert source_type(term) == ("made by a trained AI model", "ai-generated", "strong")
    expected = {
        "compositeWithTrainedAlgorithmicMedia": "edited",
        "digitalCapture": "photograph",
        "negativeFilm": "photograph",
        "humanEdits": "edited",
        "digitalCreation": "neither",
        "screenCapture": "neither",
    }
    assert {term: kind.points_to for term in expected if (kind := source_type(SCHEME + term))} == expected
    assert source_type("http://example.org/other") is None
    assert source_type("") is None


def test_properties_of_an_xmp_attribute_a_list_and_a_resource() -> None:
    packet = xmp(
        "<dc:creator><rdf:Seq><rdf:li>Ann</rdf:li><rdf:li>Ben</rdf:li></rdf:Seq></dc:creator><dcterms:provenance "
        'rdf:resource="https://example.org/m.c2pa"/>'
    ).replace(b'rdf:about=""', b'rdf:about="" photoshop:Credit="Made with Google AI" xmp:CreatorTool="x"', 1)
    found = {(p.name, p.value) for p in read_xmp(packet)}
    assert {("creator", "Ann"), ("creator", "Ben"), ("Credit", "Made with Google AI")} <= found
    assert ("provenance", "https://example.org/m.c2pa") in found
    provenance = read_provenance(saved(xmp=packet))
    assert [f.title for f in provenance.findings] == ["Names a generator: Google AI"]
    assert provenance.not_checked == (
        "content credentials (C2PA) kept elsewhere are not fetched: https://example.org/m.c2pa",
    )


def test_iptcs_properties_of_ai_systems() -> None:
    body = "<Iptc4xmpExt:AIPromptInformation>a fox</Iptc4xmpExt:AIPromptInformation>"
    finding = only(saved(xmp=xmp(body)))
    assert finding.title == "A prompt for an AI system (IPTC)"
    assert finding.detail == "a fox"


# -- cameras --------------------------------------------------------------------------------------------------

EXPOSURE = {0x829A: (1, 250), 0x829D: 2.8, 0x8827: 100, 0x920A: 35.0, 0x9003: "2021:05:04 10:11:12"}


def test_camera_data_speak_for_a_photograph() -> None:
    finding = only(saved(exif=exif({0x010F: "Canon", 0x0110: "Canon EOS R6"}, EXPOSURE | {0x829A: 0.004})))
    assert (finding.kind, finding.points_to, finding.strength) == ("camera", "photograph", "moderate")
    assert finding.detail == "exposure 1/250 s, aperture f/2.8, ISO 100, focal length 35 mm, taken 2021:05:04 10:11:12"


@pytest.mark.parametrize(
    ("metadata", "title"),
    [
        (Metadata("JPEG", exif={"Make": "Canon", "Model": "EOS R6"}), "A camera without exposure data"),
        (Metadata("JPEG", exif={"DateTimeOriginal": "2031:01:01 00:00:00"}), "A date in the future"),
        (Metadata("JPEG", exif={"DateTimeOriginal": "1970:01:01 00:00:00"}), "A date before EXIF existed"),
        (Metadata("AVIF", exif={"DateTimeOriginal": "2012:01:01 00:00:00"}), "A format younger than the photograph"),
        (
            Metadata("JPEG", exif={"DateTimeOriginal": "2020:05:01 00:00:00", "DateTime": "2019:05:01 00:00:00"}),
            "Changed before it was taken",
        ),
        (
            Metadata("JPEG", (800, 600), exif={"ExifImageWidth": 1600, "ExifImageHeight": 1200}),
            "Not the size that EXIF states",
        ),
        (Metadata("JPEG", (600, 600), thumbnail=(160, 107)), "A preview of another shape"),
    ],
)
def test_contradictions_are_named(metadata: Metadata, title: str) -> None:
    found = find_camera(metadata, now=datetime(2026, 6, 1, tzinfo=UTC))
    assert [(f.kind, f.title) for f in found] == [("contradiction", title)]
    assert found[0].strength == "weak"


def test_a_date_before_the_model_existed() -> None:
    tags = {"Make": "Apple", "Model": "iPhone 15 Pro", "FNumber": 1.8, "ISOSpeedRatings": 64}
    titles = [f.title for f in find_camera(Metadata("JPEG", exif=tags | {"DateTimeOriginal": "2019:06:01 08:00:00"}))]
    assert titles == ["Camera data: Apple iPhone 15 Pro", "A date before the camera existed"]
    assert len(find_camera(Metadata("JPEG", exif=tags | {"DateTimeOriginal": "2024:06:01 08:00:00"}))) == 1


def test_a_turned_photograph_and_a_padded_preview_contradict_nothing() -> None:
    turned = Metadata("JPEG", (600, 800), exif={"ExifImageWidth": 800, "ExifImageHeight": 600})
    padded = Metadata("JPEG", (1920, 1080), thumbnail=(160, 120))
    assert find_camera(turned) == find_camera(padded) == []


def test_the_preview_is_measured_where_the_block_says_it_is() -> None:
    preview = saved(size=(32, 16))
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HI", 0, 14)  # an empty IFD0, then IFD1 at 14
    entries = [(0x0103, 3, 1, 6 << 16), (0x0201, 4, 1, 14 + 2 + 36 + 4), (0x0202, 4, 1, len(preview))]
    ifd = struct.pack(">H", 3) + b"".join(struct.pack(">HHII", *entry) for entry in entries) + b"\0\0\0\0"
    block = b"Exif\0\0" + tiff + ifd + preview
    data = saved(exif=block)
    assert only(data).detail == "preview 32 x 16, image 48 x 40: cropped since"
    start = data.index(b"\xff\xc0", data.index(preview) + len(preview)) + 5
    flat = data[:start] + b"\0\0" + data[start + 2 :]  # a header of no height
    assert read_provenance(flat).findings == ()


def test_numbers_that_no_camera_means_are_no_exposure() -> None:
    exif = {"Make": "Maker", "Model": "One", "ExposureTime": 1e-310, "FNumber": 2.8, "FocalLength": 50.0}
    (found,) = find_camera(Metadata("JPEG", (48, 40), exif=exif))
    assert found.detail == "aperture f/2.8, focal length 50 mm"


# -- content credentials --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sign() -> Any:
    """Signs the bytes of an image with a certificate made on the spot."""
    return Signer()


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "tiff", "gif"])
def test_valid_credentials_are_read_with_their_limits(sign: Any, kind: str) -> None:
    found = read_provenance(sign(saved(kind.upper()), [CREATED], kind))
    said, signature = found.findings
    assert (said.title, said.points_to, said.strength) == (
        "Content credentials say: made by a trained AI model",
        "ai-generated",
        "strong",
    )
    assert said.detail.startswith("c2pa.created; by Painter 3; ")
    assert signature.title == "Content credentials in the name of Test Press"
    assert signature.detail.startswith("made by Test Maker 2; ")
    assert signature.detail.endswith("the file is as it was signed; the signer is not checked against a trust list")
    assert signature.points_to == "neither"


def test_credentials_of_changed_pixels_do_not_hold_and_weigh_less(sign: Any) -> None:
    data = bytearray(sign(saved(), [CREATED]))
    data[-60] ^= 1
    found = {f.title: f for f in read_provenance(bytes(data)).findings}
    broken = found["Content credentials in the name of Test Press that do not hold: the file is not as it was signed"]
    assert broken.points_to == "edited"
    assert "assertion.dataHash.mismatch" in broken.detail
    assert found["Content credentials say: made by a trained AI model"].strength == "weak"


def test_credentials_of_the_file_that_it_was_made_from_count(sign: Any) -> None:
    original = sign(saved(), [CREATED])
    opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["p"]}}
    child = sign(saved(), [opened, {"action": "c2pa.color_adjustments"}], parent=original)
    found = {f.title: f for f in read_provenance(child).findings}
    assert found["Content credentials say: made by a trained AI model, of the file it was made from"].points_to == (
        "ai-generated"
    )
    assert found["Content credentials list edits"].points_to == "edited"
    assert found["Content credentials list edits"].detail == "c2pa.color_adjustments"


def test_a_signed_photograph_points_to_a_photograph(sign: Any) -> None:
    data = sign(saved(), [{"action": "c2pa.created", "digitalSourceType": SCHEME + "digitalCapture"}])
    assert ("photograph", "moderate") in {(f.points_to, f.strength) for f in read_provenance(data).findings}


def test_a_signer_is_trusted_by_the_list_that_holds_its_authority(sign: Any, tmp_path: Path) -> None:
    changed = bytearray(data := sign(saved(), [CREATED]))
    changed[-60] ^= 1
    status = {}
    for name, signer in (("own", sign), ("foreign", Signer())):
        (path := tmp_path / f"{name}.pem").write_text(signer.authority)
        trust_list = read_trust_list(path)
        whole, broken = (read_provenance(each, trust_list=trust_list).credentials for each in (data, bytes(changed)))
        assert whole is not None
        assert broken is not None
        assert whole.trust_list == f"{name}.pem, sha256 {trust_list.sha256[:12]}"
        status[name] = whole.status, broken.status
    assert status == {"own": ("trusted", "broken"), "foreign": ("valid, signer not on the list", "broken")}
    (image := tmp_path / "a.jpg").write_bytes(data)
    command = ["provenance", str(image), "--json", "--trust-anchors", str(tmp_path / "own.pem")]
    result = CliRunner().invoke(app, command)
    assert json.loads(result.stdout)["credentials"]["status"] == "trusted", result.output


def test_without_c2pa_python_the_rest_is_read_and_the_gap_named(sign: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sign(png(parameters=WEBUI), [CREATED], "png")
    monkeypatch.setitem(__import__("sys").modules, "c2pa", None)
    found = read_provenance(data)
    assert [f.kind for f in found.findings] == ["generator"]
    assert found.not_checked == (
        "content credentials (C2PA): c2pa-python is not installed; in clipmole's folder, run: "
        "pip install -e '.[provenance]'",
    )


def test_damaged_credentials_are_said_to_be(sign: Any) -> None:
    data = sign(saved(), [CREATED])
    at = data.index(b"c2pa.assertions")
    damaged = data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]
    titles = [f.title for f in read_provenance(damaged).findings]
    assert titles
    assert all(title.startswith("Content credentials") for title in titles)
    assert not any(f.strength == "strong" for f in read_provenance(damaged).findings)


# -- hostile --------------------------------------------------------------------------------------------------

BOMB = (
    b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    b'<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><l>&c;</l>'
)
FETCH = b'<!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/hostname">]><l xmlns="u:v"><name>&x;</name></l>'


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (BOMB, "declares a document type"),
        (BOMB.decode().encode("utf-16"), "declares a document type"),
        (FETCH, "declares a document type"),
        (b"<a" * 5, "not well-formed"),
        (b"<a>" * 200, "deeper than"),
        (b"<a>" + b"x" * 2**21, "bytes"),
        (b"<a xmlns='u:v'>" + b"<b>1</b>" * 6000 + b"</a>", "more than 5000 properties"),
        (b"", "not well-formed"),
        (b'<?xml version="1.0" encoding="none"?><a/>', "an encoding that XMP cannot have: unknown encoding: none"),
        (b'<?xml version="1.0" encoding="shift_jis"?><a/>', "an encoding that XMP cannot have: multi-byte encodings"),
        (b'<?xml version="1.0" encoding="idna"?><a/>', "an encoding that XMP cannot have"),
    ],
)
def test_hostile_xmp_is_refused_whole(packet: bytes, reason: str) -> None:
    with pytest.raises(UnsafeXMP, match=reason):
        read_xmp(packet)


def test_hostile_xmp_leaves_the_other_metadata_readable() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", BOMB.decode())
    info.add_text("parameters", WEBUI)
    found = read_provenance(saved("PNG", pnginfo=info))
    assert [f.kind for f in found.findings] == ["generator"]
    assert found.not_checked == ("XMP cannot be read (declares a document type)",)


def test_a_text_is_cut_and_made_printable() -> None:
    hostile = "Midjourney \u202egnp.exe\x1b[2J\n\0 " + "A" * 10_000_000
    line = one_line(hostile)
    assert len(line) <= MAX_LINE
    assert line.isprintable()
    assert "\u202e" not in line
    assert line.endswith("...")
    assert one_line("short\ntext") == "short text"
    finding = only(png(Title=hostile[:40]))
    assert finding.detail.isprintable()


def png_with(chunks: bytes) -> bytes:
    """A PNG with more chunks before its pixels."""
    plain = saved("PNG")
    return plain[:33] + chunks + plain[33:]


MEBIBYTE = zlib.compress(b"a" * (2**20 - 4) + "\U0001f600".encode(), 9)  # four bytes a character in Python
SHORT = b"Steps: 20, Sampler: Euler a, Seed: 1"


@pytest.mark.parametrize(
    "bomb",
    [
        chunk(b"iTXt", b"Comment\0\1\1\0\0" + MEBIBYTE) * 300,
        chunk(b"iTXt", b"Comment\0\1\0\0\0" + MEBIBYTE) * 300,
        chunk(b"zTXt", b"Comment\0\0" + MEBIBYTE) * 300,
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**28), 9)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\1\0\0" + MEBIBYTE) * 300,
        chunk(b"zTXt", b"Raw profile type exif\0\0" + MEBIBYTE) * 300,
        chunk(b"tEXt", b"Comment\0" + bytes(2**20)) * 20,
        chunk(b"eXIf", b"II*\0" + bytes(2**24)),
        chunk(b"tEXt", b"parameters\0x") * 20_000,
    ],
    ids=["itxt-method-1", "itxt", "ztxt", "one-ztxt", "xmp", "raw-profile", "plain", "exif", "many"],
)
def test_all_metadata_of_a_file_together_is_bounded_and_what_is_left_out_is_said(bomb: bytes) -> None:
    data = png_with(chunk(b"tEXt", b"parameters\0" + SHORT) + bomb)
    tracemalloc.start()
    try:
        metadata = read_metadata(data, "PNG", None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 2**20  # 8 MiB of characters that take 4 bytes each, and a copy
    assert metadata.texts[0].value == SHORT.decode()
    assert re.fullmatch(
        r"[\d,]+ parts? of the metadata left out, to read no more than 8 MiB of it: .+", metadata.damaged[-1]
    )
    assert read_provenance(data).not_checked[-1] == metadata.damaged[-1]


def test_jpeg_segments_are_bounded_together_and_read_in_linear_time() -> None:
    exif_segment = b"\xff\xe1" + struct.pack(">H", 65535) + b"Exif\0\0MM\0*" + bytes(65533 - 10)
    comment = b"\xff\xfe" + struct.pack(">H", 65535) + bytes(65533)
    plain = saved(comment=WEBUI)
    data = plain[:2] + exif_segment * 150 + comment * 150 + plain[2:]
    found = read_provenance(data)
    assert found.not_checked[-1].startswith("174 parts of the metadata left out")
    assert read_provenance(plain[:2] + comment * 3 + plain[2:]).findings[0].key == "comment"  # not the first one only


def test_an_exif_block_that_points_at_the_same_bytes_again_and_again_is_bounded() -> None:
    n, size = 4000, 2**16
    entries = b"".join(struct.pack("<HHII", 0x0100 + k, 2, size, 8) for k in range(n))
    block = b"II*\0" + struct.pack("<IH", 8, n) + entries + bytes(4 + size)
    data = png_with(chunk(b"eXIf", block))
    tracemalloc.start()
    try:
        read_provenance(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 64 * 2**20


def test_json_of_any_depth_and_numbers_of_any_length_are_survived() -> None:
    for value in (
        "[" * 100_000,
        '{"a":' * 50_000 + "1",
        '{"prompt": ' + "9" * 10_000 + "}",
        "{",
        '{"nodes": 3}',
        "[1, 2]",
    ):
        assert read_provenance(png(prompt=value, workflow=value)).findings == ()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_damaged_files_never_raise_but_image_errors(format: str) -> None:
    block = exif({0x010F: "Canon", 0x0131: "GIMP", 0x010E: WEBUI}, EXPOSURE | {0x829A: 0.004, 0x9286: b"ASCII\0\0\0x"})
    data = saved(format, exif=block)

    @given(at=st.integers(0, len(data) - 1), value=st.integers(0, 255), cut=st.integers(16, len(data)))
    def survive(at: int, value: int, cut: int) -> None:
        changed = bytearray(data[:cut])
        if at < len(changed):
            changed[at] = value
        try:
            found = read_provenance(bytes(changed))
        except ImageUnreadable:
            return
        assert all(f.title.isprintable() and f.detail.isprintable() and f.key.isprintable() for f in found.findings)

    survive()


# -- the command ----------------------------------------------------------------------------------------------


EMBEDDED = ("--detector", "embedded")


def test_the_command_shows_the_metadata_apart_from_the_score(tmp_path: Path) -> None:
    generated, bare = tmp_path / "generated.png", tmp_path / "bare.png"
    generated.write_bytes(png(parameters=WEBUI))
    bare.write_bytes(saved("PNG"))
    paths = [str(bare), str(generated), str(tmp_path / "absent.png")]
    runner = CliRunner()
    table = runner.invoke(app, ["detect", *EMBEDDED, "--provenance", *paths])
    lines = [line for line in table.stdout.splitlines() if "no verdict" not in line]  # of one colour
    assert lines[1] == "    metadata: nothing says where the image comes from, which proves nothing"
    assert lines[3].startswith(
        "    metadata: Generation parameters of Stable Diffusion WebUI or alike (v1.9.4) (strong: "
    )
    assert lines[4].startswith("not scored")
    assert CAUTION in table.stderr

    plain = [
        json.loads(line) for line in runner.invoke(app, ["detect", *EMBEDDED, "--json", *paths]).stdout.splitlines()
    ]
    told = runner.invoke(app, ["detect", *EMBEDDED, "--json", "--provenance", *paths]).stdout.splitlines()
    records = [json.loads(line) for line in told]
    assert [record.pop("provenance", "none") for record in records[2:]] == ["none"]
    assert records[1].pop("provenance")["findings"][0]["points_to"] == "ai-generated"
    assert records[0].pop("provenance")["findings"] == []
    assert records == plain  # the score is the same

    rows = list(
        csv.DictReader(io.StringIO(runner.invoke(app, ["detect", *EMBEDDED, "--csv", "--provenance", *paths]).stdout))
    )
    assert [row["provenance"][:21] for row in rows] == ["", "Generation parameters", ""]
