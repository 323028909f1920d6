"""The one inference path: every kind of input, order, batches, tiles, verdicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CALIBRATION, PREPROCESS, encoded, picture, tiny_backbone, tiny_network

from clipmole import Detector, Verdict
from clipmole.config import Families, MoLEConfig, PreprocessConfig
from clipmole.errors import ConfigError, ImageError, ImageNotFound, ImageUnreadable
from clipmole.images.crops import crop_windows, cut_crops
from clipmole.inference.detector import LOOKS_DRAWN, likely_family
from clipmole.inference.runtime import batch_for
from clipmole.models.adapter import save_adapter
from clipmole.models.backbone import save_tower
from clipmole.records import Detection, Family, Thresholds


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector(tiny_network(), PREPROCESS, CALIBRATION, "tiny@0")


def test_path_bytes_image_and_array_give_the_same_logit(detector: Detector, tmp_path: Path) -> None:
    image = picture(0)
    (tmp_path / "a.b.PNG").write_bytes(encoded(image))
    sources = [tmp_path / "a.b.PNG", str(tmp_path / "a.b.PNG"), encoded(image), image, np.asarray(image)]
    logits = detector.score(sources)
    assert logits.dtype == np.float32
    alone = [float(detector.score([source])[0]) for source in sources]
    assert len(set(alone)) == 1
    assert logits == pytest.approx(alone, abs=1e-5)  # in one batch a BLAS may round by the row
    names = [detection.source for detection in detector.detect_batch(sources)]
    assert names == [str(tmp_path / "a.b.PNG"), str(tmp_path / "a.b.PNG"), "<bytes>", "<image>", "<array>"]


def test_a_logit_is_the_mean_of_the_networks_logits_over_the_crops(detector: Detector) -> None:
    image = picture(1, 100, 70)
    crops = torch.from_numpy(cut_crops(image, PREPROCESS).pixels)
    with torch.no_grad():
        expected = detector.network(crops)
    detection = detector.detect(image, tiles=True)
    assert detection.tiles == len(expected) == 4
    assert detection.tile_logits == pytest.approx(expected.tolist(), abs=1e-5)
    assert detection.logit == pytest.approx(float(expected.mean()), abs=1e-5)
    assert (detection.width, detection.height) == (100, 70)


def test_the_view_of_the_whole_has_its_weight_in_the_logit(detector: Detector) -> None:
    preprocess = PREPROCESS.model_copy(update={"whole_weight": 0.3})
    both = Detector(tiny_network(), preprocess, CALIBRATION, "tiny@0")
    image = picture(1, 100, 70)
    with torch.no_grad():
        logits = both.network(torch.from_numpy(cut_crops(image, preprocess).pixels)).tolist()
    found, crops_alone = both.detect(image, tiles=True), detector.detect(image, tiles=True)
    assert found.whole_logit == pytest.approx(logits[-1], abs=1e-5)
    assert found.tile_logits == pytest.approx(crops_alone.tile_logits, abs=1e-5)
    assert (found.tiles, crops_alone.whole_logit) == (crops_alone.tiles, None)
    assert found.logit == pytest.approx(0.7 * crops_alone.logit + 0.3 * logits[-1], abs=1e-5)
    images = [picture(i, 30 + 40 * i, 70) for i in range(4)]  # of several sizes, over several passes
    small = Detector(tiny_network(), preprocess, CALIBRATION, "tiny@0", batch_size=3)
    assert small.score(images) == pytest.approx([both.detect(each).logit for each in images], abs=1e-5)


@pytest.mark.parametrize(("bias", "verdict"), [(1e6, Verdict.UNCERTAIN), (-1e6, None)])
def test_what_looks_drawn_has_no_verdict(bias: float, verdict: Verdict | None) -> None:
    """The second output speaks of the view of the whole, and changes no logit."""
    network = tiny_network(config=MoLEConfig(drawn=True))
    assert network.drawn is not None
    with torch.no_grad():
        network.drawn.bias.fill_(bias)
    preprocess = PREPROCESS.model_copy(update={"whole_weight": 0.3})
    pictures = [picture(seed, 100, 70) for seed in range(6)]
    middle = float(np.median(Detector(tiny_network(), preprocess).score(pictures)))
    calibration = CALIBRATION.model_copy(update={"intercept": -CALIBRATION.slope * middle})
    plain = Detector(tiny_network(), preprocess, calibration).detect_batch(pictures)
    found = Detector(network, preprocess, calibration, batch_size=4).detect_batch(pictures)
    assert [each.logit for each in found] == pytest.approx([each.logit for each in plain], abs=1e-5)
    assert len({each.verdict for each in plain}) > 1
    assert [each.verdict for each in found] == [verdict or each.verdict for each in plain]
    assert {each.reason for each in found} == {LOOKS_DRAWN if verdict else None}


def test_a_family_is_named_where_it_is_likely_and_such_answers_were_mostly_right() -> None:
    families = Families(names=("a", "b", "c"), confusion=((8, 1, 2, 3), (1, 5, 0, 0), (0, 2, 2, 0), (1, 0, 0, 9)))
    said = likely_family(families, np.array([3.0, 1.0, 1.0]))
    assert said == Family(name="a", share=said.share if said else 1, right=8, answers=10)
    assert said.share == pytest.approx(1 / (1 + 2 * np.exp(-2)))
    assert likely_family(families, np.array([0.6, 0.0, 0.0])) is None  # a share of 0.48
    assert likely_family(families, np.array([0.0, 0.0, 9.0])) is None  # 2 of 4 such answers were right


@pytest.mark.parametrize(("bias", "drawn"), [(1e6, True), (-1e6, False)])
def test_families_are_the_last_outputs_pooled_as_the_logit_is(bias: float, drawn: bool) -> None:
    families = Families(names=("a", "b"), confusion=((7, 1, 0), (2, 9, 0), (0, 0, 0)))
    network = tiny_network(config=MoLEConfig(drawn=True, families=families))
    assert network.drawn is not None
    with torch.no_grad():
        network.drawn.bias.fill_(bias)
    preprocess = PREPROCESS.model_copy(update={"whole_weight": 0.3})
    calibration = CALIBRATION.model_copy(update={"slope": 1e-6, "intercept": 3.0})  # everything is AI-generated
    pictures = [picture(seed, 100, 70) for seed in range(3)]
    found = Detector(network, preprocess, calibration, batch_size=4).detect_batch(pictures)
    assert {each.reason for each in found} == {LOOKS_DRAWN if drawn else None}
    for image, each in zip(pictures, found, strict=True):
        with torch.no_grad():
            outputs = network(torch.from_numpy(cut_crops(image, preprocess).pixels)).double()
        a, b = (0.7 * outputs[:-1, 2:].mean(0) + 0.3 * outputs[-1, 2:]).exp().tolist()
        share = max(a, b) / (a + b)
        expected = Family(name="a" if a > b else "b", share=share, right=7 if a > b else 9, answers=9 if a > b else 10)
        assert (each.family is None) is drawn
        if each.family:
            assert each.family.share == pytest.approx(share, abs=1e-5)
            assert each.family.model_copy(update={"share": share}) == expected


def test_tile_boxes_say_where_the_crops_lie(detector: Detector) -> None:
    image = picture(1, 100, 70)
    boxes = detector.detect(image, tiles=True).tile_boxes
    assert boxes is not None
    pixels = cut_crops(image, PREPROCESS).pixels
    for box, crop in zip(boxes, pixels, strict=True):
        assert np.array_equal(np.asarray(image.crop(box)).transpose(2, 0, 1), crop)


def test_boxes_of_an_image_smaller_than_a_crop_are_the_image(detector: Detector) -> None:
    detection = detector.detect(picture(1, 20, 9), tiles=True)
    assert detection.tile_boxes == ((0, 0, 20, 9),)


def test_boxes_are_cut_where_one_side_only_is_mirrored(detector: Detector) -> None:
    detection = detector.detect(picture(1, 20, 100), tiles=True)
    assert detection.tile_boxes is not None
    tops = [window[1] for window in crop_windows(20, 100, PREPROCESS)]
    assert detection.tile_boxes == tuple((0, top, 20, top + 32) for top in tops)


def test_scores_do_not_depend_on_batch_size_or_neighbours() -> None:
    images = [picture(i, 30 + 13 * i, 90 - 7 * i) for i in range(9)]
    network = tiny_network()
    alone = [Detector(network, PREPROCESS, batch_size=1).score([image])[0] for image in images]
    for batch_size in (1, 2, 5, 32):
        together = Detector(network, PREPROCESS, batch_size=batch_size).score(images)
        assert together == pytest.approx(np.array(alone), abs=2e-5)
        backwards = Detector(network, PREPROCESS, batch_size=batch_size).score(images[::-1])[::-1]
        assert backwards == pytest.approx(np.array(alone), abs=2e-5)
    assert np.ptp(alone) > 0.01  # different images, different logits


def test_no_forward_pass_is_larger_than_the_batch_size() -> None:
    network = tiny_network()
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    Detector(network, PREPROCESS, batch_size=3).score([picture(i, 100, 70) for i in range(4)])
    assert max(sizes) == 3
    assert sum(sizes) == 16


def test_forward_passes_are_small_on_a_cpu_where_nothing_is_said() -> None:
    network = tiny_network()
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    Detector(network, PREPROCESS).score([picture(i, 100, 70) for i in range(4)])
    assert sizes == [8, 8]
    assert batch_for("cuda:1") == 32


def test_verdicts_follow_the_calibration(detector: Detector) -> None:
    for detection in detector.detect_batch([picture(i) for i in range(20)]):
        assert detection.probability == pytest.approx(1 / (1 + np.exp(-(2.0 * detection.logit + 0.1))), abs=1e-9)
        expected = Verdict.AI_GENERATED if detection.probability > 0.7 else Verdict.UNCERTAIN
        assert detection.verdict is (Verdict.REAL if detection.probability < 0.3 else expected)
        assert detection.thresholds == CALIBRATION.thresholds


def test_an_image_without_content_is_uncertain_and_says_why(detector: Detector) -> None:
    sure = CALIBRATION.model_copy(update={"thresholds": Thresholds(real=0.0, ai=0.0)})  # everything is AI-generated
    certain = Detector(detector.network, PREPROCESS, sure)
    black, photo = certain.detect_batch([Image.new("RGB", (100, 70)), picture(0, 100, 70)])
    assert (black.verdict, black.reason) == (Verdict.UNCERTAIN, "the image shows nothing but even areas")
    assert black.probability is not None
    assert (photo.verdict, photo.reason) == (Verdict.AI_GENERATED, None)
    uncalibrated = Detector(detector.network, PREPROCESS).detect(Image.new("RGB", (100, 70)))
    assert (uncalibrated.verdict, uncalibrated.reason) == (None, "the image shows nothing but even areas")
    assert (
        certain.detect(picture(0, 9, 9)).reason
        == "the image has only 81 pixels to look at in a crop, which takes 32 x 32"
    )


def test_the_share_that_was_looked_at_is_said(detector: Detector) -> None:
    assert detector.detect(picture(1, 64, 64)).coverage == 1
    assert detector.detect(picture(1, 128, 128)).coverage == pytest.approx(4 * 32**2 / 128**2)


def test_a_record_written_before_the_share_was_counted_still_reads(detector: Detector) -> None:
    older = detector.detect(picture(1)).model_dump(exclude={"coverage", "reason"})
    assert Detection.model_validate(older).coverage is None


def test_the_crops_can_be_chosen_in_every_call(detector: Detector) -> None:
    image = picture(1, 400, 300)
    box = (40, 80, 232, 208)
    part = image.crop(box)
    assert detector.detect(image).tiles == 6  # it is large for crops of 32 pixels
    assert detector.detect(image, max_tiles=1).tiles == 1
    assert len(detector.detect_batch([image, image], max_tiles=1)) == 2
    assert [d.tiles for d in detector.stream([image], max_tiles=2) if isinstance(d, Detection)] == [2]
    detection = detector.detect(image, tiles=True, region=box)
    assert (detection.width, detection.height) == (400, 300)
    assert detection.logit == pytest.approx(detector.detect(part).logit, abs=1e-5)
    assert detector.score([image], region=box) == pytest.approx(detector.score([part]), abs=1e-5)
    assert detection.tile_boxes is not None
    lefts, tops, rights, bottoms = zip(*detection.tile_boxes, strict=True)
    # inside the region, on both sides of its centre
    assert 40 <= min(lefts) < 136 < max(rights) <= 232
    assert 80 <= min(tops) < 144 < max(bottoms) <= 208
    assert detection.coverage == pytest.approx(detection.tiles * 32**2 / (400 * 300))


def test_a_region_outside_costs_one_image_only(detector: Detector) -> None:
    results = list(detector.stream([picture(0), picture(1, 400, 300)], region=(50, 50, 100, 100)))
    assert str(results[0]) == "<image>: region 50,50 to 100,100 does not lie in the image of 48 x 40 pixels"
    assert isinstance(results[1], Detection)


def test_no_crop_at_all_cannot_be_asked_for(detector: Detector) -> None:
    with pytest.raises(ConfigError, match="max_tiles=0: at least one crop is needed"):
        detector.detect(picture(0), max_tiles=0)


def test_without_a_calibration_there_is_no_probability_and_no_verdict() -> None:
    detection = Detector(tiny_network(), PREPROCESS).detect(picture(0))
    assert (detection.probability, detection.verdict, detection.thresholds) == (None, None, None)


def test_a_bad_image_among_good_ones_keeps_its_place(detector: Detector, tmp_path: Path) -> None:
    missing = ImageNotFound("pattern*", "nothing matches this pattern")
    sources = [picture(0), b"not an image", picture(1), tmp_path / "absent.png", missing, picture(2)]
    results = list(detector.stream(sources))
    kinds = [type(result).__name__ for result in results]
    assert kinds == ["Detection", "ImageUnreadable", "Detection", "ImageNotFound", "ImageNotFound", "Detection"]
    assert results[4] is missing
    good = [result.logit for result in results if not isinstance(result, ImageError)]
    assert good == pytest.approx(detector.score([picture(i) for i in range(3)]).tolist(), abs=2e-5)
    with pytest.raises(ImageUnreadable, match="<bytes>"):
        detector.detect_batch(sources)


def test_nothing_in_nothing_out(detector: Detector) -> None:
    assert detector.detect_batch([]) == []
    assert detector.score([]).shape == (0,)


def test_images_are_taken_one_batch_at_a_time(detector: Detector) -> None:
    taken = 0

    def endless():  # type: ignore[no-untyped-def]
        nonlocal taken
        while True:
            taken += 1
            yield picture(taken)

    next(iter(detector.stream(endless())))
    assert taken <= detector.batch_size


def test_from_pretrained_loads_what_was_saved(tmp_path: Path) -> None:
    backbone = tiny_backbone()
    save_tower(backbone.tower, tmp_path / "tiny", torch.float32)
    network = tiny_network(backbone)
    save_adapter(tmp_path / "mine", network, backbone, PREPROCESS, CALIBRATION)
    loaded = Detector.from_pretrained(tmp_path / "mine", backbone=tmp_path / "tiny")
    ours = Detector(network, PREPROCESS, CALIBRATION).detect(picture(3))
    theirs = loaded.detect(picture(3))
    assert (theirs.logit, theirs.verdict) == (ours.logit, ours.verdict)
    assert theirs.detector.startswith("mine@")


def test_bfloat16_stays_close() -> None:
    network = tiny_network()
    images = [picture(i) for i in range(4)]
    exact = Detector(network, PREPROCESS).score(images)
    fast = Detector(network, PREPROCESS, precision="bfloat16").score(images)
    assert 0 < np.abs(exact - fast).max() < 0.1 * np.abs(exact).max()


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size=0"):
        Detector(tiny_network(), PREPROCESS, batch_size=0)
    with pytest.raises(ConfigError, match="device=quantum"):
        Detector(tiny_network(), PREPROCESS, device="quantum")


def test_bfloat16_near_a_threshold_is_scored_again_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = tiny_network(), [picture(i) for i in range(8)]
    logits = Detector(network, PREPROCESS).score(images)
    gaps = [min(abs(a - b) for j, b in enumerate(logits) if j != i) for i, a in enumerate(logits)]
    near = int(np.argmax(gaps))
    monkeypatch.setattr("clipmole.inference.detector.RECHECK", gaps[near] / 2)
    threshold = CALIBRATION.probability(float(logits[near]))
    calibration = CALIBRATION.model_copy(update={"thresholds": Thresholds(real=threshold, generated=threshold)})
    reduced = Detector(network, PREPROCESS, calibration, precision="bfloat16").score(images)
    assert [i for i in range(8) if abs(reduced[i] - logits[i]) < 1e-5] == [near]
    plain = Detector(network, PREPROCESS, precision="bfloat16").score(images)
    assert (abs(plain - logits) > 1e-5).all()


def test_center_crop_mode_takes_one_crop() -> None:
    detector = Detector(tiny_network(), PreprocessConfig(mode="center_crop", crop_size=32))
    assert detector.detect(picture(0, 200, 100), tiles=True).tile_boxes == ((84, 34, 116, 66),)
