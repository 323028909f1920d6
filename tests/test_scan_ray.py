"""Scanning on Ray: the same logits, copies once, and a node that is killed while it works."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from scanning import TOLERANCE, rows_of, run, tiny_detector, write_images
from tiny import encoded, picture

from clipmole.errors import ConfigError
from clipmole.scan.on_ray import QUIET, Cluster

ray = pytest.importorskip("ray")
pytest.importorskip("pyarrow")
cluster_utils = pytest.importorskip("ray.cluster_utils")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes of one core each on this machine; the driver is on the first."""
    before = {name: os.environ.get(name) for name in [*QUIET, "PYTHONPATH"]}
    here = str(Path(__file__).parent)
    os.environ |= QUIET | {"PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)])}
    made = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8},
    )
    made.second = made.add_node(num_cpus=1, object_store_memory=10**8)
    yield made
    ray.shutdown()
    made.shutdown()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.mark.slow
def test_the_same_rows_though_a_node_is_killed(tmp_path: Path, cluster: Any) -> None:
    place = tmp_path / "images"
    paths = write_images(place, 60)
    for i in range(6):
        shutil.copy(paths[9 * i], place / f"copy-{i}.png")
    (place / "text.png").write_text("no image")
    alone = run(tmp_path / "alone", place, part_rows=4)
    seen: list[str] = []

    def track(rows: Iterable[Any], _description: str, _total: int | None) -> Iterator[Any]:
        for row in rows:
            seen.append(row.source)
            if len(seen) == 9:  # both nodes have begun
                cluster.remove_node(cluster.second, allow_graceful=False)
            yield row

    two = Cluster(cluster.address, workers=(2, 2))
    load = partial(tiny_detector, 0.05)
    rows = run(tmp_path / "scan", place, part_rows=4, load=load, cluster=two, track=track)
    assert len(seen) == len(set(seen)) == len(rows) == 67
    for row, other in zip(rows, alone, strict=True):
        assert row["logit"] == pytest.approx(other["logit"], abs=TOLERANCE)
        same = ("source", "sha256", "verdict", "error_code", "error", "tiles", "bytes", "format")
        assert [row[key] for key in same] == [other[key] for key in same]
    copies = {row["source"]: row["duplicate_of"] for row in rows if row["duplicate_of"]}
    assert len(copies) == 6  # each pair of equal bytes was scored once, whichever of the two came first
    scored = {row["source"] for row in rows if not row["duplicate_of"]}
    assert set(copies.values()) <= scored
    assert len(ray.nodes()) - sum(node["Alive"] for node in ray.nodes()) == 1

    (place / "zz-new.png").write_bytes(encoded(picture(999)))  # goes on, and without Ray too
    more = run(tmp_path / "scan", place, part_rows=4)
    assert [row for row in more if row["source"] in {r["source"] for r in rows}] == rows
    assert len(rows_of(tmp_path / "scan")) == 68


def test_what_a_cluster_cannot_give_is_said(tmp_path: Path, cluster: Any) -> None:
    write_images(tmp_path / "images", 2)
    with pytest.raises(ConfigError, match="a worker is to have 500 CPUs"):
        run(tmp_path / "scan", tmp_path / "images", cluster=Cluster(cluster.address, (1, 1), cpus=500))
