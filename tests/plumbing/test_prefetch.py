"""The look-ahead: order, bounds, errors in their place, and nothing left behind."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count

import numpy as np
import pytest
from tiny import CALIBRATION, PREPROCESS, encoded, picture, tiny_network

from clipmole import Detector
from clipmole.errors import ConfigError, ImageError, ImageNotFound, ImageUnreadable
from clipmole.plumbing.prefetch import LINGER, ahead


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("clipmole-ahead")]


def wait_until(true: object, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.002)
    assert true()  # type: ignore[operator]


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_results_come_in_the_order_of_the_items(workers: int) -> None:
    waits = np.random.default_rng(0).uniform(0, 0.004, 60)

    def slow(i: int) -> int:
        time.sleep(waits[i])
        return i * i

    assert list(ahead(slow, range(60), workers=workers, limit=4)) == [i * i for i in range(60)]
    assert not threads()


def test_threads_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=10)

    def meet(i: int) -> int:
        together.wait()  # breaks unless three are here
        return i

    assert list(ahead(meet, range(9), workers=3, limit=3)) == list(range(9))


@pytest.mark.parametrize(("workers", "limit"), [(1, 1), (1, 6), (3, 6), (4, 1)])
def test_no_more_is_taken_than_the_limit_and_what_is_in_work(workers: int, limit: int) -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        for i in count():
            taken.append(i)
            yield i

    with closing(ahead(lambda i: i, endless(), workers=workers, limit=limit)) as results:
        for i in range(20):
            assert next(results) == i
            given = i + 1
            wait_until(lambda given=given: len(taken) >= given + limit)  # it does work ahead,
            time.sleep(0.005)
            assert len(taken) <= given + limit + workers - 1  # but not further than this
    assert not threads()


def test_results_weigh_what_they_are_said_to() -> None:
    taken: list[int] = []

    def endless() -> Iterator[int]:
        for i in count():
            taken.append(i)
            yield i

    with closing(ahead(lambda i: i, endless(), workers=1, limit=10, weigh=lambda _: 5)) as results:
        next(results)
        wait_until(lambda: len(taken) == 3)  # two of weight 5 lie ready
        time.sleep(0.02)
        assert len(taken) == 3


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_what_is_raised_comes_out_at_its_place(workers: int) -> None:
    def reciprocal(i: int) -> float:
        time.sleep(0.003 * (5 - i))
        return 1 / (3 - i)

    results = ahead(reciprocal, range(5), workers=workers, limit=8)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert not threads()

    def broken() -> Iterator[int]:
        yield from (1, 2)
        raise OSError("the list ends here")

    results = ahead(lambda i: i, broken(), workers=workers, limit=8)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(OSError, match="ends here"):
        next(results)
    assert not threads()


def test_a_silent_source_holds_up_nothing_that_is_ready() -> None:
    more = threading.Event()

    def source() -> Iterator[int]:
        yield from (1, 2, 3)
        more.wait(10)
        yield 4

    results = ahead(lambda i: i, source(), workers=2, limit=8)
    assert [next(results) for _ in range(4)] == [1, 2, 3, None]  # None: nothing is coming for now, said once
    threading.Timer(3 * LINGER, more.set).start()
    assert list(results) == [4]
    assert not threads()


def test_leaving_does_not_wait_for_a_source_that_does_not_answer() -> None:
    more = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        more.wait(20)
        yield 2

    results = ahead(lambda i: i, source(), workers=3, limit=8)
    assert next(results) == 1
    began = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 5
    assert len(threads()) == 1  # the one that waits for the source
    more.set()
    wait_until(lambda: not threads())


IMAGES = [encoded(picture(i, 30 + 9 * i, 120 - 8 * i)) for i in range(12)]


@pytest.fixture(scope="module")
def alone() -> list[float]:
    """Each image by itself, without threads."""
    detector = Detector(tiny_network(), PREPROCESS, CALIBRATION, batch_size=1, workers=0)
    return [detector.detect(image).logit for image in IMAGES]


@pytest.mark.parametrize("batch_size", [1, 3, 32])
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_logits_depend_on_no_batch_order_or_number_of_workers(
    workers: int, batch_size: int, alone: list[float]
) -> None:
    detector = Detector(tiny_network(), PREPROCESS, CALIBRATION, batch_size=batch_size, workers=workers)
    assert np.ptp(alone) > 0.01
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(IMAGES)).tolist()
        results = detector.detect_batch([IMAGES[i] for i in order])
        assert [r.logit for r in results] == pytest.approx([alone[i] for i in order], abs=2e-5)
        assert [(r.width, r.height) for r in results] == [(30 + 9 * i, 120 - 8 * i) for i in order]
        assert sum(r.tiles for r in results) > len(IMAGES)  # several crops an image, split over passes
    assert not threads()


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_forward_passes_are_full_across_images(workers: int) -> None:
    network = tiny_network()
    sizes: list[int] = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    detector = Detector(network, PREPROCESS, batch_size=5, workers=workers)
    crops = sum(result.tiles for result in detector.detect_batch(IMAGES))
    full, rest = divmod(crops, 5)
    assert sizes == [5] * full + [rest] * (rest > 0)


@pytest.mark.parametrize("workers", [0, 1, 4])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_errors_stand_at_their_place(workers: int, batch_size: int, alone: list[float]) -> None:
    missing = ImageNotFound("pattern*", "nothing matches this pattern")
    images = [b"", IMAGES[0], missing, IMAGES[1][:60], *IMAGES[2:5], "absent.png"]
    detector = Detector(tiny_network(), PREPROCESS, batch_size=batch_size, workers=workers)
    results = list(detector.stream(iter(images)))
    kinds = [ImageUnreadable, None, ImageNotFound, ImageUnreadable, None, None, None, ImageNotFound]
    assert [type(r) if isinstance(r, ImageError) else None for r in results] == kinds
    assert results[2] is missing
    good = [result.logit for result in results if not isinstance(result, ImageError)]
    assert good == pytest.approx([alone[0], *alone[2:5]], abs=2e-5)
    with pytest.raises(TypeError, match="not int"):
        list(detector.stream([IMAGES[0], 3, IMAGES[1]]))  # type: ignore[list-item]
    assert not threads()


@pytest.mark.parametrize("workers", [1, 4])
def test_a_stream_that_is_left_early_leaves_no_thread(workers: int) -> None:
    detector = Detector(tiny_network(), PREPROCESS, batch_size=2, workers=workers)
    stream = detector.stream(IMAGES[i % 12] for i in count())
    next(stream)
    assert threads()
    stream.close()  # type: ignore[attr-defined]
    assert not threads()

    for result in detector.stream(iter(IMAGES)):
        assert result
        break
    assert not threads()

    def interrupted() -> None:
        for _ in detector.stream(iter(IMAGES)):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    wait_until(lambda: not threads())  # once nothing holds the stream, the traceback neither


def test_a_network_that_fails_ends_the_threads() -> None:
    network = tiny_network()
    detector = Detector(network, PREPROCESS, batch_size=2, workers=2)

    def fail(*_: object) -> None:
        raise MemoryError("no room for the batch")

    network.register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        detector.detect_batch(IMAGES)
    assert not threads()


@pytest.mark.parametrize("workers", [1, 3])
def test_about_two_batches_are_held_of_endless_images(workers: int) -> None:
    taken = 0

    def endless() -> Iterator[bytes]:
        nonlocal taken
        while True:
            taken += 1
            yield IMAGES[0]  # two crops

    batch_size, each = 6, 4
    detector = Detector(tiny_network(), PREPROCESS, batch_size=batch_size, workers=workers)
    tiles = detector.detect(IMAGES[0]).tiles
    assert tiles == each
    with closing(detector.stream(endless())) as stream:
        for given in range(1, 30):
            next(stream)
            time.sleep(0.002)
            # of the batch that was scored, those ready, and those in work
            assert taken <= given + 2 * batch_size // each + 1 + workers


def test_results_come_out_while_the_source_is_silent() -> None:
    more = threading.Event()

    def source() -> Iterator[bytes]:
        yield from IMAGES[:2]
        more.wait(20)
        yield IMAGES[2]

    detector = Detector(tiny_network(), PREPROCESS, batch_size=32, workers=1)
    stream = detector.stream(source())
    began = time.monotonic()
    first, second = next(stream), next(stream)
    assert not isinstance(first, ImageError)
    assert not isinstance(second, ImageError)
    assert time.monotonic() - began < 10
    more.set()
    assert len(list(stream)) == 1


def test_one_image_needs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise AssertionError("a thread was started")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert Detector(tiny_network(), PREPROCESS, workers=4).detect(IMAGES[0]).tiles == 4


def test_a_number_of_workers_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="workers=-1"):
        Detector(tiny_network(), PREPROCESS, workers=-1)


def test_a_detector_can_be_copied_to_another_process() -> None:
    detector = Detector(tiny_network(), PREPROCESS, workers=3)
    logits = detector.score(IMAGES[:2])
    assert detector.timings.decode > 0
    assert detector.timings.network > 0
    copy = pickle.loads(pickle.dumps(detector))
    assert (copy.workers, copy.timings.decode, copy.timings.network) == (3, 0, 0)
    assert copy.score(IMAGES[:2]) == pytest.approx(logits, abs=1e-6)
