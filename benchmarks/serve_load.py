"""Requests a second, latency and memory of the server, with every answer checked.

    python benchmarks/serve_load.py load [--shape vit-b-16] [--clients 1 8 32] [--seconds 30] [--out DIR]
    python benchmarks/serve_load.py soak [--seconds 1800] [--rate 2] [--clients 4] [--out DIR]

The server is a process of its own on loopback, the clients are another. `load` gives random weights to a tower of the
shape named (as fast as trained ones) and sends images of one crop, each client the next as soon as it has its answer.
The model-only rate is that of the same network on crops that lie ready, in batches of the same size, in the same run
before and after. `soak` has the embedded detector, images of many sizes and formats, files that are no images, and a
fixed rate; memory is that of the server and its decoding processes together.

An answer is right if it is that of the image that was sent: the logit that `Detector` gives for the same bytes in this
process (within 1e-4, float rounding between batches), the request id and, in a form, the name that were sent with it.
"""

from __future__ import annotations

import argparse
import http.client
import io
import itertools
import json
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from clipmole.config import MoLEConfig, PreprocessConfig, TowerConfig, clip_tower
from clipmole.errors import ImageError
from clipmole.inference.detector import Detector
from clipmole.models.network import MoLENetwork
from clipmole.models.vit import ViT
from clipmole.plumbing.environment import environment
from clipmole.plumbing.files import write_texts

SHAPES = {  # CLIP's towers (Radford et al. 2021), and one to try the script with
    "vit-b-32": lambda: clip_tower(32, 768, 12, 12, 512),
    "vit-b-16": lambda: clip_tower(16, 768, 12, 12, 512),
    "vit-l-14": lambda: clip_tower(14, 1024, 24, 16, 768),
    "tiny": lambda: TowerConfig(image_size=224, patch_size=32, width=48, depth=4, heads=2, mlp_width=96),
}
TOLERANCE = 1e-4
TARGET = 0.85  # of the model-only rate, with the most clients


@dataclass
class Tally:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    wrong: int = 0
    lost: int = 0
    largest: float = 0.0  # difference of a logit
    reasons: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, kind: str, reason: str) -> None:
        with self.lock:
            setattr(self, kind, getattr(self, kind) + 1)
            self.reasons = [*self.reasons, reason][:10]


@dataclass(frozen=True)
class Item:
    """A file to send, and what has to come back: a logit or an error's code."""

    name: str
    data: bytes
    logit: float | None
    code: str | None = None


def build(shape: str) -> Detector:
    """A detector of a shape with random weights, the same for the same shape; "embedded" is the one of the package."""
    if shape == "embedded":
        return Detector.from_pretrained()
    torch.manual_seed(0)
    network = MoLENetwork(ViT(SHAPES[shape]()).requires_grad_(False), MoLEConfig())
    torch.nn.init.normal_(network.head.weight)
    return Detector(network.eval(), PreprocessConfig(crop_size=224), name=shape)


def picture(seed: int, width: int, height: int, format: str = "JPEG") -> bytes:
    """A file of a picture with structure at all scales, the same for the same arguments."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cells in (3, 9, 27, 81):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), dtype=float) / 4
    buffer = io.BytesIO()
    options = {"quality": 90} if format in ("JPEG", "WEBP") else {}
    Image.fromarray(total.astype(np.uint8)).save(buffer, format, **options)
    return buffer.getvalue()


def expected(detector: Detector, files: dict[str, bytes]) -> list[Item]:
    """What `Detector` says of each file."""
    items = []
    for (name, data), result in zip(files.items(), detector.stream(files.values()), strict=True):
        failed = isinstance(result, ImageError)
        items.append(Item(name, data, None if failed else result.logit, result.code if failed else None))
    return items


class Server:
    """A server in a process of its own."""

    def __init__(self, shape: str, threads: int) -> None:
        command = [sys.executable, __file__, "server", "--shape", shape, "--threads", str(threads)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.port = 0
        for line in self.process.stderr:
            if line.startswith("listening on"):
                self.port = int(line.rsplit(":", 1)[1])
            if line.startswith("ready"):
                break
        threading.Thread(target=self.process.stderr.read, daemon=True).start()

    def stop(self) -> int:
        """The exit code; what was accepted is answered first."""
        self.process.terminate()
        return self.process.wait(120)

    def memory(self) -> tuple[float, int]:
        """Resident MiB of the server with its decoding processes, and the server's open files."""
        processes = [self.process.pid]
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == self.process.pid:
                    processes.append(int(folder.name))
            except OSError:
                continue
        total = 0.0
        for process in processes:
            try:
                status = Path(f"/proc/{process}/status").read_text()
                total += int(status.split("VmRSS:")[1].split()[0]) / 1024
            except (OSError, IndexError):
                continue
        return total, len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))


def serve(shape: str, threads: int) -> None:
    """Be the server."""
    from clipmole.serve.server import serve as run
    from clipmole.serve.settings import ServeSettings

    if threads:
        torch.set_num_threads(threads)
    run(lambda: build(shape), ServeSettings(), port=0, say=lambda line: print(line, file=sys.stderr, flush=True))


def ask(connection: http.client.HTTPConnection, item: Item, as_form: bool, number: int) -> tuple[Any, str]:
    """Send a file; the result and the request id that came back."""
    headers = {"X-Request-ID": f"load-{number}", "Content-Type": "application/octet-stream"}
    path, body = "/v1/detect/bytes", item.data
    if as_form:
        edge = "clipmole-load"
        headers["Content-Type"] = f"multipart/form-data; boundary={edge}"
        head = f'--{edge}\r\nContent-Disposition: form-data; name="images"; filename="{item.name}"\r\n\r\n'
        path, body = "/v1/detect", head.encode() + item.data + f"\r\n--{edge}--\r\n".encode()
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    text = response.read()
    if response.status != 200:
        raise ValueError(f"status {response.status}: {text[:200]!r}")
    answer = json.loads(text)
    return (answer["results"][0] if as_form else answer["result"]), answer["request_id"]


def client(port: int, numbered: Iterator[tuple[int, Item]], go: Callable[[int], bool], tally: Tally) -> None:
    """Send files until `go` says no more."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    while True:
        with tally.lock:
            number, item = next(numbered)
        if not go(number):
            return
        as_form = number % 2 == 0
        began = time.perf_counter()
        try:
            result, request_id = ask(connection, item, as_form, number)
        except (OSError, ValueError, http.client.HTTPException) as error:
            tally.fail("lost", f"{type(error).__name__}: {error}")
            connection.close()
            continue
        seconds = time.perf_counter() - began
        found = result["detection"]
        code = result["error"] and result["error"]["code"]
        difference = abs(found["logit"] - item.logit) if found and item.logit is not None else 0.0
        right = request_id == f"load-{number}" and code == item.code and difference <= TOLERANCE
        right = right and (found is None) == (item.logit is None) and (not as_form or result["name"] == item.name)
        with tally.lock:
            tally.seconds.append(seconds)
            tally.largest = max(tally.largest, difference)
        if not right:
            tally.fail("wrong", f"request {number}: {item.name}: {json.dumps(result)[:200]}")


def numbered(items: list[Item]) -> Iterator[tuple[int, Item]]:
    """The files over and over, each time with another number, so with a form and without."""
    order = np.random.default_rng(0)
    for number in itertools.count():
        yield number, items[int(order.integers(len(items)))]


def run_clients(port: int, items: list[Item], clients: int, go: Callable[[int], bool]) -> tuple[Tally, float]:
    """What `clients` of them saw, and the seconds that it took."""
    tally, shared = Tally(), numbered(items)
    threads = [threading.Thread(target=client, args=(port, shared, go, tally)) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally, time.perf_counter() - began


def model_rate(shape: str, seconds: float, threads: int) -> float:
    """Crops a second of the network alone, in a process of its own, best of three stretches."""
    command = [sys.executable, __file__, "model", "--shape", shape, "--seconds", str(seconds)]
    result = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    return float(result.stdout)


def model(shape: str, seconds: float, threads: int) -> None:
    """Print the model-only rate."""
    if threads:
        torch.set_num_threads(threads)
    detector = build(shape)
    crops = np.random.default_rng(0).integers(0, 256, (detector.batch_size, 3, 224, 224), dtype=np.uint8)
    detector.runtime.outputs(crops, len(crops))
    rates = []
    for _ in range(3):
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds / 3:
            detector.runtime.outputs(crops, len(crops))
            done += len(crops)
        rates.append(done / (time.perf_counter() - began))
    print(max(rates))


def load(arguments: argparse.Namespace) -> dict[str, Any]:
    """Rate and latency by the number of clients, beside the model-only rate."""
    shape, threads = arguments.shape, arguments.threads
    items = expected(build(shape), {f"picture-{i}.jpg": picture(i, 256, 256) for i in range(arguments.images)})
    rates = [model_rate(shape, arguments.seconds / 2, threads)]
    server = Server(shape, threads)
    rows = []
    try:
        run_clients(server.port, items, 2, lambda number: number < 8)  # the first answers are slower
        for clients in arguments.clients:
            end = time.perf_counter() + arguments.seconds
            tally, seconds = run_clients(server.port, items, clients, lambda _, end=end: time.perf_counter() < end)
            rows.append({"clients": clients, "rate": len(tally.seconds) / seconds} | summary(tally))
    finally:
        code = server.stop()
    rates.append(model_rate(shape, arguments.seconds / 2, threads))
    rate = max(rates)
    return {
        "shape": shape,
        "images": "256 x 256 JPEG, one crop each",
        "model_only": rates,
        "target": TARGET,
        "share": [row["rate"] / rate for row in rows],
        "rows": rows,
        "exit_code": code,
    }


def summary(tally: Tally) -> dict[str, Any]:
    """Answers, seconds of each, and what was wrong with them."""
    p50, p95, p99 = np.percentile(tally.seconds, [50, 95, 99]).tolist()
    return {
        "answers": len(tally.seconds),
        "p50": p50,
        "p95": p95,
        "p99": p99,
        "wrong": tally.wrong,
        "lost": tally.lost,
        "largest_difference": tally.largest,
        "reasons": tally.reasons,
    }


def soak(arguments: argparse.Namespace) -> dict[str, Any]:
    """Answers, memory and latency at a fixed rate for a long time."""
    files = {
        f"picture-{i}.{format.lower()}": picture(i, 40 + 61 * i, 60 + 47 * i, format)
        for i, format in zip(range(arguments.images), itertools.cycle(["JPEG", "PNG", "WEBP", "TIFF", "BMP"]))
    }
    files |= {"notes.txt": b"not an image\n" * 100, "cut.jpg": picture(1, 300, 300)[:4000], "empty.png": b"\x89PNG"}
    items = expected(build("embedded"), files)
    server = Server("embedded", arguments.threads)
    samples: list[tuple[float, float, int]] = []
    began = time.perf_counter()

    def go(number: int) -> bool:
        due = began + number / arguments.rate
        time.sleep(max(0.0, due - time.perf_counter()))
        return time.perf_counter() - began < arguments.seconds

    def watch() -> None:
        while time.perf_counter() - began < arguments.seconds:
            samples.append((time.perf_counter() - began, *server.memory()))
            time.sleep(min(10.0, arguments.seconds / 20))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        tally, seconds = run_clients(server.port, items, arguments.clients, go)
        watcher.join()
    finally:
        code = server.stop()
    thirds = [[s[1] for s in samples if int(3 * s[0] / arguments.seconds) == third] for third in range(3)]
    return {
        "seconds": seconds,
        "rate_asked": arguments.rate,
        "clients": arguments.clients,
        **summary(tally),
        "mib_mean_by_thirds": [statistics.mean(third) for third in thirds],
        "mib_most_by_thirds": [max(third) for third in thirds],
        "files_open": [samples[0][2], samples[-1][2]],
        "samples": [[round(at), round(mib, 1), files] for at, mib, files in samples],
        "exit_code": code,
    }


def load_markdown(result: dict[str, Any]) -> str:
    first, last = result["model_only"]
    lines = [
        f"{result['shape']} with random weights, {result['images']}. Model alone: {first:.2f} images/s before, "
        f"{last:.2f} after. {foot(result)}",
        "",
        "| clients | answers | images/s | share of the model alone | p50, s | p95, s | p99, s | wrong | lost |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row, share in zip(result["rows"], result["share"], strict=True):
        lines.append(
            f"| {row['clients']} | {row['answers']} | {row['rate']:.2f} | {share:.1%} | {row['p50']:.2f} | "
            f"{row['p95']:.2f} | {row['p99']:.2f} | {row['wrong']} | {row['lost']} |"
        )
    return "\n".join(lines) + "\n"


def soak_markdown(result: dict[str, Any]) -> str:
    means, most = (
        ", ".join(f"{mib:.0f}" for mib in result[key]) for key in ("mib_mean_by_thirds", "mib_most_by_thirds")
    )
    return (
        f"Embedded detector, {result['seconds'] / 60:.0f} minutes, {result['answers']} answers to {result['clients']} "
        f"clients: {result['wrong']} wrong, {result['lost']} lost. p50 {result['p50']:.2f} s, p95 {result['p95']:.2f} "
        f"s, p99 {result['p99']:.2f} s. Memory of the server and its decoding processes, mean of the first, second and "
        f"last third of the time: {means} MiB; most: {most} MiB. Open files {result['files_open'][0]} at the start, "
        f"{result['files_open'][1]} at the end. {foot(result)}\n"
    )


def foot(result: dict[str, Any]) -> str:
    where = result["environment"]
    note = f"{result['note']} " if result.get("note") else ""
    return f"{note}{where['date']}, {where['cpu']}, {where['threads']} threads, torch {where['torch']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["load", "soak", "server", "model"])
    parser.add_argument("--shape", choices=[*SHAPES, "embedded"], default="vit-b-16")
    parser.add_argument("--clients", type=int, nargs="+")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rate", type=float, default=2.0, help="requests a second of a soak")
    parser.add_argument("--threads", type=int, default=0, help="of the network; 0: as many as PyTorch takes")
    parser.add_argument("--note", default="", help="a caveat to print with the result")
    parser.add_argument("--out", type=Path, help="folder for the results as JSON and Markdown")
    arguments = parser.parse_args()
    if arguments.what == "server":
        return serve(arguments.shape, arguments.threads)
    if arguments.what == "model":
        return model(arguments.shape, arguments.seconds, arguments.threads)
    given = [a for a in sys.argv[1:] if not a.startswith("--out") and a != str(arguments.out)]
    recipe = {
        "command": shlex.join(["python", "benchmarks/serve_load.py", *given]),
        "note": arguments.note,
        "environment": environment() | {"threads": arguments.threads or torch.get_num_threads()},
    }
    if arguments.what == "load":
        arguments.clients = arguments.clients or [1, 8, 32]
        arguments.seconds = arguments.seconds or 30.0
        result = recipe | load(arguments)
        name, text = "serve-load", load_markdown(result)
    else:
        arguments.clients = (arguments.clients or [4])[0]
        arguments.seconds = arguments.seconds or 1800.0
        result = recipe | soak(arguments)
        name, text = "serve-soak", soak_markdown(result)
    if arguments.out:
        write_texts(arguments.out, {f"{name}.json": json.dumps(result, indent=1) + "\n", f"{name}.md": text})
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}))
    return None


if __name__ == "__main__":
    main()
