"""Binds, runs and ends the service: uvicorn around the app, editors beside it, an orderly end on SIGTERM.

On the first SIGTERM or Ctrl-C no new job is taken and open streams end; the running edit has `grace` seconds, in which
clients can still ask how it stands, then its journal waits for the next start. A second signal ends at once.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import uvicorn

from fairy.kernels.errors import InputError
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.service import logs
from fairy.runtime.service.access import Gate
from fairy.runtime.service.app import make_app
from fairy.runtime.service.dispatcher import Dispatcher
from fairy.runtime.service.editor_link import COMMAND, RAY_COMMAND, EditorLink
from fairy.runtime.service.events import Events
from fairy.runtime.service.files import DataFolder
from fairy.runtime.service.housekeeping import Housekeeping, Reading
from fairy.runtime.service.jobs import JobStore
from fairy.runtime.service.metrics import Metrics
from fairy.runtime.service.options import ServiceOptions
from fairy.runtime.service.service import Service
from fairy.runtime.service.webhooks import Webhooks, read_secret

log = logging.getLogger("fairy.service")
_CLOSING_S = 5
"""How long downloads may go on after the last edit has ended."""
_BACKLOG = 512
_THREADS = 32


def serve(options: ServiceOptions, setup: EditorSetup) -> None:
    """Run the service until it is told to end.

    Raises:
        InputError: it cannot listen there, or the model, the keys or the folder cannot be used.
        FairyError: the editors do not start.
    """
    logs.set_up(options.log_format)
    folder = DataFolder(options.folder)
    with folder.held(), contextlib.closing(_listening(options)) as listener:
        store = JobStore(folder.rows, folder.free_reserve)
        try:
            asyncio.run(_run(options, setup, folder, store, listener))
        finally:
            store.close()


async def _run(
    options: ServiceOptions, setup: EditorSetup, folder: DataFolder, store: JobStore, listener: socket.socket
) -> None:
    # What waits for the disk or the table must never wait for what waits for the network.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "disk"))
    service = make_service(options, setup, folder, store)
    server = _Server(service)
    async with _beside(service):
        address = listener.getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        log.info("listening", extra={"url": f"http://{host}:{address[1]}/"})
        failing = asyncio.create_task(_end_when_failed(service.dispatcher, server))
        try:
            await server.serve(sockets=[listener])
        finally:
            failing.cancel()
    if service.dispatcher.fatal is not None:
        raise service.dispatcher.fatal


def make_service(options: ServiceOptions, setup: EditorSetup, folder: DataFolder, store: JobStore) -> Service:
    """All parts of a service, not started yet."""
    events, metrics, reading = Events(), Metrics(), Reading()
    metrics.watch(store)
    command = COMMAND if options.ray is None else (*RAY_COMMAND, options.ray)
    links = [EditorLink(n, setup, options.max_frames, folder.root, command) for n in range(options.editors)]
    dispatcher = Dispatcher(links, store, folder, events, metrics, options.keep)
    webhooks = None
    if options.webhook_host:
        secret = read_secret(Path(str(options.webhook_secret)).expanduser())
        webhooks = Webhooks(store, metrics, options.webhook_host, secret, dispatcher.record)
    gate = Gate(options, folder.secret)
    return Service(options, setup.model_name, folder, store, gate, events, metrics, reading, dispatcher, webhooks)


@contextlib.asynccontextmanager
async def _beside(service: Service) -> AsyncIterator[None]:
    """What runs beside the HTTP server: editors, housekeeping, webhooks."""
    again = service.store.put_all_back()
    service.folder.remove_strangers(service.store.known(), service.store.known_sources())
    if again:
        log.info("jobs go on that were interrupted", extra={"jobs": again})
    options = service.options
    keeper = Housekeeping(
        service.store, service.folder, service.events, service.reading, keep_s=options.keep, most_bytes=options.disk
    )
    service.dispatcher.start()
    tasks = [asyncio.create_task(_forever(keeper.run))]
    if service.webhooks is not None:
        tasks.append(asyncio.create_task(_forever(service.webhooks.run)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await service.dispatcher.drain(0.01 if service.dispatcher.fatal else options.grace)


async def _forever(work: Callable[[], Awaitable[None]]) -> None:
    """Run something again where it failed, which a full disk may make it."""
    while True:
        try:
            await work()
        except Exception:
            log.exception("work beside the service failed")
            await asyncio.sleep(10)


async def _end_when_failed(dispatcher: Dispatcher, server: "_Server") -> None:
    await dispatcher.failed.wait()
    server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn, with its signals made an order: streams end first, then connections."""

    def __init__(self, service: Service) -> None:
        config = uvicorn.Config(
            make_app(service),
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            backlog=_BACKLOG,
            timeout_keep_alive=20,
            timeout_graceful_shutdown=_CLOSING_S,
            proxy_headers=False,
            h11_max_incomplete_event_size=64 * 1024,
        )
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal is polite, the second is not."""
        if self._service.dispatcher.draining:
            os._exit(128 + sig)
        self._service.dispatcher.draining = True
        log.info("stopping", extra={"signal": signal.Signals(sig).name})
        asyncio.get_running_loop().call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._service.events.close()
        self._ending = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        try:
            await self._service.dispatcher.drain(self._service.options.grace)
        finally:
            self.should_exit = True


def _listening(options: ServiceOptions) -> socket.socket:
    """A socket there. Raises InputError."""
    host = options.host.strip("[]")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, options.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{options.host}:{options.port} cannot be listened to ({reason}); choose another --port."
        ) from error
    return listener
