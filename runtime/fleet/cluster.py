"""Being a driver of a Ray cluster: one of this machine that lives as long as the job, or one that runs elsewhere."""

import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from fairy.kernels.errors import InputError, MachineError

_CONNECT_S = 10.0
_OBJECT_STORE_BYTES = 80 << 20
"""Near the least that Ray accepts: clips travel as paths, results as reports."""


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Be a driver inside the block, and hand out the module `ray`.

    Args:
        address: "local", "auto" or "HOST:PORT"; without meaning where this process is a driver already, which it then
            stays.

    Raises:
        InputError: Ray is not installed, or no cluster answers. MachineError: Ray does not start here.
    """
    if address == "local":
        with _environment(_local_environment()):  # before Ray is imported: it reads some of it just then
            ray = _import_ray()
            with _driver(ray) if ray.is_initialized() else _local(ray):
                yield ray
    else:
        ray = _import_ray()
        with _driver(ray) if ray.is_initialized() else _remote(ray, address):
            yield ray


def _import_ray() -> Any:
    try:
        return import_module("ray")
    except ImportError:
        raise InputError("Ray is not installed; run: pip install 'fairy-runtime[ray]'.") from None


@contextmanager
def _driver(ray: Any) -> Iterator[None]:
    yield


@contextmanager
def _local(ray: Any) -> Iterator[None]:
    """Start Ray without its dashboard and end it; nothing of it is left behind."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    try:
        try:
            with _own_signals():
                ray.init(
                    address="local",
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                    object_store_memory=_OBJECT_STORE_BYTES,
                    _temp_dir=str(folder),
                )
        except Exception as error:  # of many kinds, where one of its processes does not start
            raise MachineError(f"Ray did not start on this machine ({first_line(error)}).") from error
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _check_port(address: str) -> None:
    """Refuse a HOST:PORT where nothing listens, which Ray would try for minutes. Raises InputError."""
    host, found, port = address.rpartition(":")
    if not found or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = "give the address of one that this machine belongs to, or local"
        raise InputError(f"No Ray cluster answers at {address!r} ({reason}); {remedy}.") from error


@contextmanager
def _remote(ray: Any, address: str) -> Iterator[None]:
    _check_port(address)
    try:
        try:
            with _own_signals():
                ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # of many kinds, few of them Ray's own
            raise InputError(
                f"No Ray cluster answers at {address!r} ({first_line(error)}); give the address of one that this "
                "machine belongs to, or local."
            ) from error
        yield
    finally:
        ray.shutdown()


def _local_environment() -> dict[str, str]:
    return {
        "RAY_USAGE_STATS_ENABLED": "0",  # it would report its use to its makers
        # Ray's processes listen on the loopback interface alone, as they do by default on these systems, and only to
        # who knows the token, which would otherwise be written into the user's home.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _token(),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # no warning about GPUs that editors on the CPU do not look at
    }


@cache
def _token() -> str:
    """One a process, because Ray reads it only once."""
    return secrets.token_hex(32)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables of this process where they are not set, and take them back afterwards."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's answer to SIGTERM, which Ray replaces by its own."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def first_line(error: Exception) -> str:
    """What Ray says first of an error, without its state and traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
