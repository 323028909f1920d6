"""Conditions: what a file says is what is done to the pixels, the same for everybody, whatever the order."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from tiny import picture

from clipmole.config import packaged_names
from clipmole.errors import ConfigError
from clipmole.images import transforms as augment
from clipmole.images.conditions import Condition, apply, load_conditions

RGB = NDArray[np.uint8]
PIXELS = np.asarray(picture(3, 60, 44))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def condition(*steps: dict[str, object], **fields: object) -> Condition:
    return Condition.parse({"name": "test", "steps": steps, **fields}, "test")


def under(*steps: dict[str, object], seed: int = 0) -> RGB:
    return apply(condition(*steps), PIXELS, rng(seed))


def stored(rgb: RGB, format: str, **options: object) -> RGB:
    """The pixels after an independent encoder call."""
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, format, **options)
    return np.asarray(Image.open(buffer).convert("RGB"))


# -- steps ----------------------------------------------------------------------------------------------------


def test_codecs_are_one_generation_at_the_quality() -> None:
    jpeg = stored(PIXELS, "JPEG", quality=40, subsampling="4:2:0")
    assert np.array_equal(under({"op": "jpeg", "quality": 40}), jpeg)
    assert np.array_equal(under({"op": "webp", "quality": 40}), stored(PIXELS, "WEBP", quality=40))


def test_steps_follow_one_another_in_the_order_of_the_file() -> None:
    chain = under({"op": "webp", "quality": 60}, {"op": "jpeg", "quality": 30}, {"op": "jpeg", "quality": 80})
    expected = stored(stored(stored(PIXELS, "WEBP", quality=60), "JPEG", quality=30), "JPEG", quality=80)
    assert np.array_equal(chain, expected)


def test_sizes() -> None:
    pytest.importorskip("cv2")
    assert under({"op": "resize", "scale": 0.25}).shape == (11, 15, 3)
    assert under({"op": "resize", "scale": 2}).shape == (88, 120, 3)
    assert under({"op": "square", "side": 32}).shape == (32, 32, 3)
    assert under({"op": "crop", "share": 0.5}).shape == (22, 30, 3)
    assert under({"op": "crop", "share": 0.5, "resize_back": True}).shape == (44, 60, 3)
    assert {under({"op": "resize", "scale": [0.5, 1]}, seed=s).shape[0] for s in range(400)} == set(range(22, 45))


def test_a_crop_is_a_window_of_the_image() -> None:
    crops = [under({"op": "crop", "share": 0.5}, seed=s) for s in range(60)]
    windows = {PIXELS[y : y + 22, x : x + 30].tobytes(): (y, x) for y in range(23) for x in range(31)}
    places = {windows[crop.tobytes()] for crop in crops}  # KeyError if it is none
    assert len(places) > 40
    centre = under({"op": "crop", "share": 0.5, "place": "centre"}, seed=7)
    assert np.array_equal(centre, PIXELS[11:33, 15:45])
    assert np.array_equal(under({"op": "crop", "share": 1}), PIXELS)


def test_blur_and_noise_have_the_strength_of_the_file() -> None:
    pytest.importorskip("cv2")
    step = np.zeros((41, 41, 3), np.uint8)
    step[:, 20:] = 255
    taps = np.exp(-0.5 * (np.arange(-20, 21) / 2.0) ** 2)
    expected = np.convolve(step[20, :, 0], taps / taps.sum(), mode="same")
    blurred = apply(condition({"op": "blur", "sigma": 2}), step, rng())
    assert np.abs(blurred[20, 10:31, 0] - expected[10:31]).max() <= 2
    kernels = {
        apply(condition({"op": "blur", "sigma": 4, "kernels": [3, 9]}), step, rng(s)).tobytes() for s in range(9)
    }
    assert kernels == {augment.blur(step, 4, 3).tobytes(), augment.blur(step, 4, 9).tobytes()}
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = apply(condition({"op": "noise", "sigma": 10}), grey, rng()).astype(int)
    assert noisy.std() == pytest.approx((100 + 1 / 12) ** 0.5, rel=0.01)  # rounding adds 1/12
    deviations = [apply(condition({"op": "noise", "sigma": [5, 20]}), grey, rng(s)).std() for s in range(40)]
    assert 5 <= min(deviations) < 7
    assert 18 < max(deviations) < 20.2


# -- who sees what --------------------------------------------------------------------------------------------


def test_the_same_draws_give_the_same_pixels_and_the_input_is_left_alone() -> None:
    pytest.importorskip("cv2")
    before = PIXELS.copy()
    for each in {c.name: c for preset in packaged_names("images/conditions") for c in load_conditions(preset)}.values():
        one, other = apply(each, PIXELS, rng(5)), apply(each, PIXELS, rng(5))
        assert np.array_equal(one, other), each.name
        assert (one.dtype, one.shape[2], one.flags.c_contiguous) == (np.uint8, 3, True)
        if each.steps and each.applied == 1 and "100" not in each.name:
            assert one.shape != PIXELS.shape or not np.array_equal(one, PIXELS), each.name
    assert np.array_equal(PIXELS, before)


def test_points_of_a_curve_share_their_draws() -> None:
    """Noise of twice the strength is the same noise, twice as strong: a curve is smooth by construction."""
    grey = np.full((50, 50, 3), 128, np.uint8)
    weak, strong = (apply(condition({"op": "noise", "sigma": s}), grey, rng(1)).astype(int) - 128 for s in (5, 10))
    assert np.abs(strong - 2 * weak).max() <= 1.5  # rounding: 0.5 + 2 * 0.5


def test_a_share_of_the_images_is_treated() -> None:
    half = condition({"op": "jpeg", "quality": 10}, applied=0.5)
    treated = [not np.array_equal(apply(half, PIXELS, rng(s)), PIXELS) for s in range(400)]
    assert 160 < sum(treated) < 240  # 4 standard deviations


# -- presets --------------------------------------------------------------------------------------------------


def test_as_stored_and_equalised_come_first_whatever_is_loaded() -> None:
    assert packaged_names("images/conditions") == ("aide", "default", "evasion", "rine", "robustness")
    names = {preset: [c.name for c in load_conditions(preset)] for preset in packaged_names("images/conditions")}
    assert names["default"] == ["as stored", "equalised"]
    assert all(listed[:2] == names["default"] for listed in names.values())
    plain, equalised = load_conditions("default")
    assert apply(plain, PIXELS, rng()) is PIXELS
    qualities = [stored(PIXELS, "JPEG", quality=q).tobytes() for q in range(65, 91)]
    drawn = {apply(equalised, PIXELS, rng(s)).tobytes() for s in range(400)}
    assert drawn == set(qualities)


def test_robustness_covers_what_it_says() -> None:
    curves: dict[str, list[float]] = {}
    for c in load_conditions("robustness")[2:]:
        curves.setdefault(c.family, []).append(c.strength)
        number = re.search(r"[\d.]+", c.name)
        assert number is not None
        assert float(number[0]) == c.strength, c.name
        if len(c.steps) == 1:  # the strength on the axis is the number of the step
            numbers = {
                v
                for k, v in c.steps[0].model_dump().items()
                if (isinstance(v, tuple) or type(v) is int) and k != "kernels"
            }
            assert numbers == ({c.strength} if c.family == "random steps" else {(c.strength, c.strength)}), c.name
    assert curves == {
        "JPEG quality": [30, 40, 50, 60, 70, 80, 90, 100],
        "WebP quality": [50, 70, 90],
        "blur sigma, pixels": [0.5, 1, 1.5, 2, 2.5, 3],
        "resize scale": [0.25, 0.5, 0.75, 1.5, 2],
        "crop share kept": [0.5, 0.6, 0.7, 0.8, 0.9],
        "noise sigma, of 255": [2, 5, 10, 20],
        "screenshot scale": [0.5, 0.75, 1.25, 1.5],
        "times shared": [1, 2, 3],
        "random steps": [1, 2, 3, 4, 5],
    }
    chains = {c.name: [s.op for s in c.steps] for c in load_conditions("robustness")}
    assert chains["screenshot 0.75"] == ["resize", "jpeg", "jpeg"]
    assert chains["shared 2x"] == ["resize", "jpeg", "resize", "jpeg"]


def test_published_settings_are_those_of_their_papers() -> None:
    aide = {c.name: c.steps[0].model_dump(exclude_defaults=True) for c in load_conditions("aide")[2:]}
    assert aide == {
        "AIDE JPEG 95": {"quality": (95, 95)},
        "AIDE JPEG 90": {"quality": (90, 90)},
        "AIDE blur 1": {"sigma": (1, 1)},
        "AIDE blur 2": {"sigma": (2, 2)},
    }
    rine = {c.name: c for c in load_conditions("rine")[2:]}
    assert {c.applied for c in rine.values()} == {0.5}
    assert {c.steps[-1].model_dump()["side"] for c in rine.values()} == {256}
    assert [s.op for s in rine["RINE combined as run"].steps] == ["blur", "crop", "jpeg", "noise", "square"]


def test_rines_code_compresses_at_opencvs_default() -> None:
    """What "as run" rests on: an option that OpenCV does not know changes nothing, and the default is 95."""
    cv2 = pytest.importorskip("cv2")
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    default = cv2.imencode(".jpg", PIXELS, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    assert cv2.imencode(".jpg", PIXELS, [40, 90])[1].tobytes() == default
    assert cv2.imencode(".jpg", PIXELS, [cv2.IMWRITE_JPEG_QUALITY, 40])[1].tobytes() != default
    cv2.utils.logging.setLogLevel(level)


# -- what is refused ------------------------------------------------------------------------------------------


def write(path: Path, *conditions: str) -> Path:
    path.write_text(f"conditions = [{', '.join(conditions)}]\n")
    return path


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.toml", '{ name = "grainy", steps = [{ op = "noise", sigma = [3, 4] }] }')
    assert [c.name for c in load_conditions(path)] == ["as stored", "equalised", "grainy"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{ name = "x", steps = [{ op = "jpeg", quality = 0 }] }', "greater than or equal to 1 (given: 0)"),
        ('{ name = "x", steps = [{ op = "jpeg", quality = [90, 65] }] }', "[90, 65]: not an ascending range"),
        ('{ name = "x", steps = [{ op = "jpeg" }] }', "conditions.0.steps.0.jpeg.quality: is missing"),
        ('{ name = "x", steps = [{ op = "jpeg", quality = 50, sigma = 1 }] }', "sigma: unknown key (given: 1)"),
        ('{ name = "x", steps = [{ op = "sharpen" }] }', "'sharpen'"),
        ('{ name = "x", steps = [{ op = "blur", sigma = 1, kernels = [4] }] }', "kernels=(4,): sides of a kernel"),
        ('{ name = "x", steps = [{ op = "crop", share = 1.5 }] }', "less than or equal to 1 (given: 1.5)"),
        ('{ name = "x", steps = [{ op = "resize", scale = 0 }] }', "greater than 0 (given: 0)"),
        ('{ name = "x", applied = 0 }', "applied: Input should be greater than 0"),
        ('{ name = "equalised" }', "the name 'equalised' is there twice"),
        (
            '{ name = "a", family = "f", strength = 2 }, { name = "b", family = "f", strength = 2.0 }',
            "the point 'f 2' is there twice",
        ),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, text: str, reason: str) -> None:
    path = write(tmp_path / "wrong.toml", text)
    with pytest.raises(ConfigError) as error:
        load_conditions(path)
    message = str(error.value)
    assert str(path) in message
    assert reason in message
    assert "\n" not in message


def test_an_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match="'robust': neither a TOML file nor one of aide, default, evasion, rine, robustness"
    ):
        load_conditions("robust")


def test_evasion_changes_every_image_and_keeps_its_size() -> None:
    for condition in load_conditions("evasion")[2:]:
        changed = apply(condition, PIXELS, rng())
        assert changed.shape == PIXELS.shape
        difference = np.abs(changed.astype(float) - PIXELS).mean()
        assert 0.1 < difference < 40, condition.name
