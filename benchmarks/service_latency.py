"""How long the service takes to say how an edit stands: `python -m benchmarks.service_latency --out DIR`.

A real service edits a clip with the embedded model; meanwhile clients ask for the edit's status, one request after
another each, and others listen to its events. Beside it the same number of requests without an edit, and the memory
of the HTTP process before and after. The goal is a 99th percentile under 50 ms beside a running edit.
"""

import argparse
import http.client
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil

from examples.make_clip import write_clip

GOAL_MS = 50.0
POLL_S = 0.5  # the service's own openai-poll-after-ms


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and most, in ms."""
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50_ms": 1e3 * cuts[49], "p99_ms": 1e3 * cuts[98], "most_ms": 1e3 * max(seconds)}


def _client(url: str, timeout_s: float | None = 60.0) -> httpx2.Client:
    """A client that loads no certificates, which takes longer than many a request."""
    return httpx2.Client(base_url=url, timeout=timeout_s, verify=False)


def ask(url: str, path: str, clients: int, requests: int) -> list[float]:
    """Seconds of every request; each client has a connection of its own and asks as often as the service says."""

    def one(number: int) -> list[float]:
        taken, connection = [], http.client.HTTPConnection(url.removeprefix("http://").rstrip("/"), timeout=60)
        time.sleep(POLL_S * number / clients)
        for _ in range(requests // clients):
            began = time.perf_counter()
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            taken.append(time.perf_counter() - began)
            assert answer.status == 200
            time.sleep(POLL_S)
        return taken

    with ThreadPoolExecutor(clients) as pool:
        return [seconds for taken in pool.map(one, range(clients)) for seconds in taken]


def listen(url: str, count: int) -> None:
    """Streams of events that stay open."""

    def hear() -> None:
        with suppress(httpx2.HTTPError), _client(url, None) as client, client.stream("GET", "/v1/events") as answer:
            for _ in answer.iter_raw():
                pass

    for _ in range(count):
        threading.Thread(target=hear, daemon=True).start()


def start(data: Path) -> tuple["subprocess.Popen[str]", str]:
    """The service, ready, and its address."""
    command = [sys.executable, "-P", "-m", "fairy.runtime.cli", "serve", "--port", "0", "--data", str(data)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    url = next(line.rpartition("url=")[2].strip() for line in process.stderr if "url=" in line)
    threading.Thread(target=lambda: [None for _ in process.stderr or ()], daemon=True).start()
    with _client(url) as client:
        while client.get("/ready").status_code != 200:
            time.sleep(0.2)
    return process, url


def measure(clients: int, requests: int, listeners: int) -> dict[str, Any]:
    """Figures without and beside an edit."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        clip = Path(folder) / "clip.mp4"
        write_clip(clip, 48, 256, 192)
        process, url = start(Path(folder) / "data")
        stack.callback(process.wait)
        stack.callback(process.kill)
        fields = {"prompt": "make it snow", "num_inference_steps": "50"}
        listen(url, listeners)
        client = stack.enter_context(_client(url))
        made = client.post("/v1/videos", data=fields, files={"input_reference": clip.read_bytes()}).json()
        path = f"/v1/videos/{made['id']}"
        while client.get(path).json()["stage"] not in ("anchors", "frames"):
            time.sleep(0.1)
        before = psutil.Process(process.pid).memory_info().rss
        beside = ask(url, path, clients, requests)
        still = client.get(path).json()["status"] == "in_progress"
        after = psutil.Process(process.pid).memory_info().rss
        client.post(f"{path}/cancel")
        return {
            "clients": clients,
            "listeners": listeners,
            "requests": len(beside),
            "edit_ran_all_the_time": still,
            "beside_an_edit": percentiles_ms(beside),
            "without_an_edit": percentiles_ms(ask(url, path, clients, requests)),
            "resident_mib": {"before": before / 2**20, "after": after / 2**20},
            "goal_p99_ms": GOAL_MS,
            "cores": psutil.cpu_count(),
        }


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, write; 1 where the goal is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service_latency", description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--listeners", type=int, default=20)
    parser.add_argument("--out", type=Path, help="a folder for service_latency.json")
    options = parser.parse_args(arguments)
    found = measure(options.clients, options.requests, options.listeners)
    text = json.dumps(found, indent=2)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "service_latency.json").write_text(text + "\n")
    return int(found["beside_an_edit"]["p99_ms"] > GOAL_MS)


if __name__ == "__main__":
    sys.exit(main())
