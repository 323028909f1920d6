"""Scanning on Ray: the same logits, copies once, though a worker, the driver or a node is killed at work."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scanning import TOLERANCE, rows_of, run, start, tiny_detector, wait_for, write_images
from tiny import encoded, picture, write_adapter

from clipmole.errors import ConfigError, DataError
from clipmole.inference.detector import Detector
from clipmole.scan import ray_engine
from clipmole.scan.ray_engine import QUIET, Cluster, connect

ray = pytest.importorskip("ray")
pytest.importorskip("pyarrow")
cluster_utils = pytest.importorskip("ray.cluster_utils")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """67 images: 60 that differ, copies of 6 of them, and one that is none."""
    place = tmp_path / "images"
    paths = write_images(place, 60)
    for i in range(6):
        shutil.copy(paths[9 * i], place / f"copy-{i}.png")
    (place / "text.png").write_text("no image")
    return place


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each on this machine; the driver is on the first."""
    here = str(Path(__file__).parents[1])
    set_here = QUIET | {"PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)])}
    set_here["RAY_worker_niceness"] = "0"  # else workers stand still as long as other tests have work for the cores
    before = {name: os.environ.get(name) for name in set_here}
    os.environ |= set_here
    soon_seen = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}  # that a node is dead
    made = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 1,
            "include_dashboard": False,
            "object_store_memory": 10**8,
            "_system_config": soon_seen,
        },
    )
    made.second = made.add_node(num_cpus=1, object_store_memory=10**8)
    yield made
    ray.shutdown()
    made.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


PATHS = """
import sys, ray
from clipmole.scan.ray_engine import Cluster, connect
connect(Cluster(sys.argv[1]))
@ray.remote(num_cpus=1)
def path():
    import colorsys, sys
    return sys.path
print(ray.get(path.remote()))
"""


def test_a_module_in_the_current_folder_is_not_executed_by_workers(tmp_path: Path, cluster: Any) -> None:
    (tmp_path / "colorsys.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    command = [sys.executable, "-P", "-c", PATHS, cluster.address]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) not in done.stdout
    assert not (tmp_path / "executed").exists()


def test_what_a_cluster_cannot_give_is_said(tmp_path: Path, cluster: Any) -> None:
    write_images(tmp_path / "images", 2)
    with pytest.raises(ConfigError, match="each worker needs 500 CPUs"):
        run(tmp_path / "scan", tmp_path / "images", cluster=Cluster(cluster.address, (1, 1), cpus=500))


class Held:
    """What workers do before each image: on one node they hold still in their second chunk, elsewhere until then."""

    def __init__(self, victim: str, marker: Path, chunk: int) -> None:
        self.victim = victim
        self.marker = marker
        self.left = chunk

    def __call__(self, _image: object) -> None:
        if ray.get_runtime_context().get_node_id() != self.victim:
            wait_for(self.marker.exists, "the node that is to be killed")
            return
        self.left -= 1
        if self.left < 0:
            self.marker.touch()
            time.sleep(120)  # it is killed meanwhile


class Fatal:
    """What kills the process of a worker before an image: the first time, or each time if there is no marker."""

    def __init__(self, image: bytes, marker: Path | None) -> None:
        self.image = image
        self.marker = marker

    def __call__(self, image: object) -> None:
        if image == self.image and not (self.marker and self.marker.exists()):
            if self.marker:
                self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def refused(_image: object) -> None:
    raise ValueError("no such operator")


def assert_same_rows(rows: list[dict[str, Any]], others: list[dict[str, Any]]) -> None:
    """The same images, each once, with the same results; of equal bytes one is scored, whichever it is."""
    assert len({row["source"] for row in rows}) == len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert row["logit"] == pytest.approx(other["logit"], abs=TOLERANCE)
        same = ("source", "sha256", "verdict", "error_code", "error", "tiles", "bytes", "format")
        assert [row[key] for key in same] == [other[key] for key in same]
    scored = {row["source"] for row in rows if not row["duplicate_of"]}
    assert {row["duplicate_of"] for row in rows if row["duplicate_of"]} <= scored
    assert len(scored) == len({row["sha256"] for row in rows})


@pytest.mark.slow
def test_a_worker_is_killed_and_its_chunk_goes_to_others(tmp_path: Path, cluster: Any, images: Path) -> None:
    alone = run(tmp_path / "alone", images, part_rows=4)
    fatal = Fatal((images / "00021.png").read_bytes(), tmp_path / "died")
    load = partial(tiny_detector, 0.01, before=fatal)
    rows = run(tmp_path / "scan", images, part_rows=4, load=load, cluster=Cluster(cluster.address, workers=(2, 2)))
    assert (tmp_path / "died").exists()
    assert_same_rows(rows, alone)


@pytest.mark.slow
def test_an_image_that_kills_every_worker_stops_the_scan_when_the_rest_is_done(
    tmp_path: Path, cluster: Any, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_engine, "TRIES", 1)
    load = partial(tiny_detector, before=Fatal((images / "00002.png").read_bytes(), None))
    reason = rf"workers died 1 times and more over the images from {images}/00000.png to {images}/00003.png"
    with pytest.raises(DataError, match=reason):
        run(tmp_path / "scan", images, part_rows=4, load=load, cluster=Cluster(cluster.address))
    there = {Path(row["source"]).name for row in rows_of(tmp_path / "scan")}
    assert there >= {f"{i:05d}.png" for i in range(4, 60)}
    assert not there & {f"{i:05d}.png" for i in range(4)}
    (images / "00002.png").write_text("no image")  # and it goes on, without Ray too
    assert len(run(tmp_path / "scan", images, part_rows=4)) == 67


def test_a_worker_that_fails_ends_the_scan_with_its_reason(tmp_path: Path, cluster: Any, images: Path) -> None:
    load = partial(tiny_detector, before=refused)
    with pytest.raises(DataError, match="a worker failed: ValueError: no such operator"):
        run(tmp_path / "scan", images, load=load, cluster=Cluster(cluster.address))


@pytest.mark.slow
def test_workers_compute_with_the_runtime_that_was_asked_for(tmp_path: Path, cluster: Any, images: Path) -> None:
    pytest.importorskip("openvino")
    adapter, backbone = write_adapter(tmp_path, depth=2)
    load = partial(Detector.from_pretrained, adapter, backbone=backbone, runtime="openvino", precision="bfloat16")
    rows = run(tmp_path / "scan", images, part_rows=20, load=load, cluster=Cluster(cluster.address))
    assert len(rows) == 67
    assert {row["detector"].partition(", ")[2] for row in rows} == {"openvino bfloat16"}
    scored = [row for row in rows if row["logit"] is not None]
    near = Detector.from_pretrained(adapter, backbone=backbone).score([row["source"] for row in scored])
    difference = np.abs(np.array([row["logit"] for row in scored]) - near)
    assert 1e-6 < difference.max() < 0.1 * np.abs(near).max()


@pytest.mark.slow
def test_a_driver_is_killed_and_what_is_missing_is_done(tmp_path: Path, cluster: Any, images: Path) -> None:
    """Two SIGKILLs of the driver, while it connects and while rows come; each lets the cores go."""
    rng = random.Random(0)
    alone = run(tmp_path / "alone", images, part_rows=4)
    out, parts = tmp_path / "scan", tmp_path / "scan" / "parts"
    two = Cluster(cluster.address, workers=(2, 2))
    connect(two)
    whole = ray.cluster_resources()["CPU"]
    for kill in range(2):
        before = len(list(parts.glob("part-*")))
        process = start(out, [str(images)], 0.02, 4, cluster=two)
        if kill:
            some = before + rng.choice([1, 2])
            wait_for(lambda least=some: len(list(parts.glob("part-*"))) >= least, "parts")  # type: ignore[misc]
        time.sleep(rng.uniform(0, 0.05 if kill else 1.5))
        assert process.is_alive(), (tmp_path / "scan.log").read_text()
        process.kill()
        process.join(60)
        wait_for(lambda: ray.available_resources().get("CPU") == whole, "the workers of a driver that is dead")
    done = {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*")}
    there = len(rows_of(out))
    assert 0 < there < 67
    seen: list[str] = []

    def track(rows: Iterable[Any], _description: str, _total: int | None) -> Iterator[Any]:
        for row in rows:
            seen.append(row.source)
            yield row

    rows = run(out, images, part_rows=4, cluster=two, track=track)
    assert len(seen) == len(set(seen)) == 67 - there
    assert {path.name: path.stat().st_mtime_ns for path in parts.glob("part-*") if path.name in done} == done
    assert_same_rows(rows, alone)


@pytest.mark.slow
def test_the_same_rows_though_a_node_is_killed(tmp_path: Path, cluster: Any, images: Path) -> None:
    alone = run(tmp_path / "alone", images, part_rows=4)
    second, held = cluster.second, tmp_path / "held"

    def kill() -> None:
        wait_for(held.exists, "a worker on the second node")
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=kill)
    killer.start()
    load = partial(tiny_detector, 0.02, before=Held(second.node_id, held, 4))
    rows = run(tmp_path / "scan", images, part_rows=4, load=load, cluster=Cluster(cluster.address, workers=(2, 2)))
    killer.join(60)
    assert held.exists()
    wait_for(lambda: [node["Alive"] for node in ray.nodes()].count(False) == 1, "Ray to see that a node is dead")
    assert len(rows) == 67
    assert sum(row["duplicate_of"] is not None for row in rows) == 6
    assert_same_rows(rows, alone)

    (images / "zz-new.png").write_bytes(encoded(picture(999)))  # goes on, and without Ray too
    more = run(tmp_path / "scan", images, part_rows=4)
    assert [row for row in more if row["source"] in {r["source"] for r in rows}] == rows
    assert len(rows_of(tmp_path / "scan")) == 68
