"""Editors on a Ray cluster: the same jobs, the same bytes, and a lost editor costs none."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from fairy.kernels.errors import InputError
from fairy.runtime.service.options import ServiceOptions
from tests.runtime.ray_environment import ray_environment
from tests.runtime.service.server import Server

pytestmark = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
CLUSTER = """
from ray.cluster_utils import Cluster
node = {"num_cpus": 2, "object_store_memory": 80 << 20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
print("address", cluster.address, flush=True)
input()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """One node on this host, on the loopback interface, with a token; its address.

    In a process of its own, because Ray reads its token once in each.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # the names of Ray's sockets must stay short
    values = ray_environment(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        command = [sys.executable, "-c", CLUSTER]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield next(line.split()[1] for line in process.stdout if line.startswith("address "))
            process.communicate("\n", timeout=60)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_lost_editor_on_the_cluster_costs_no_job(cluster: str, service: Server, clip: Path, tmp_path: Path) -> None:
    expected = service.done(service.made(clip, num_inference_steps="8")["id"])["frames_sha256"]
    server = Server(tmp_path / "data", "--ray", cluster)
    video = server.made(clip, num_inference_steps="8")
    while server.get(video["id"])["stage"] not in ("anchors", "frames"):
        time.sleep(0.02)
    (actor,) = [
        p for p in psutil.process_iter(["name", "cmdline"]) if "EditorOnNode" in " ".join(p.info["cmdline"] or ())
    ]
    os.kill(actor.pid, signal.SIGKILL)
    done = server.done(video["id"])
    assert (done["status"], done["frames_sha256"]) == ("completed", expected), server.log
    cancelled = server.made(clip, num_inference_steps="90")
    while server.get(cancelled["id"])["stage"] not in ("anchors", "frames"):
        time.sleep(0.02)
    server.client.post(f"/v1/videos/{cancelled['id']}/cancel")
    assert server.done(server.made(clip, num_inference_steps="8")["id"])["frames_sha256"] == expected
    assert server.stop() == 0, server.log


def test_addresses_that_are_not_served(tmp_path: Path) -> None:
    for address in ("local", "", "ray://a:1"):
        with pytest.raises(InputError, match="is not served"):
            ServiceOptions(data=tmp_path, ray=address)


@pytest.mark.slow
def test_a_cluster_that_is_not_there_ends_the_service_with_a_sentence(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", "--ray", "127.0.0.1:1", ready=False)
    assert server.process.wait(120) == 2
    server._reader.join(10)
    assert any("No Ray cluster answers" in line for line in server.log), server.log
