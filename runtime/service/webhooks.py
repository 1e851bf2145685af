"""Webhooks at the end of a job, signed as Standard Webhooks asks (standardwebhooks.com), sent until they arrive.

Each is due by its row, so that none is lost with the process; after `_WAITS_S` it is given up.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fairy.kernels.errors import InputError
from fairy.runtime.service import outside
from fairy.runtime.service.files import private_text
from fairy.runtime.service.jobs import Job, JobStore
from fairy.runtime.service.metrics import Metrics

log = logging.getLogger("fairy.service")
_WAITS_S = (5, 30, 300, 1800, 7200)
_PREFIX = "whsec_"


def read_secret(path: Path) -> bytes:
    """The secret in a file, "whsec_" and base64. Raises InputError."""
    text = private_text(path, "the secret of webhooks").strip()
    try:
        secret = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if not text.startswith(_PREFIX) or len(secret) < 24:
        raise InputError(f"{path} holds no secret of webhooks; write whsec_ and at least 24 bytes in base64.")
    return secret


def signed_headers(secret: bytes, message_id: str, body: bytes, moment: int) -> dict[str, str]:
    """The headers by which a receiver knows that a webhook is ours and not changed."""
    signed = f"{message_id}.{moment}.".encode() + body
    sign = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(moment),
        "webhook-signature": f"v1,{sign}",
    }


class Webhooks:
    """Sends what is due."""

    def __init__(
        self,
        store: JobStore,
        metrics: Metrics,
        hosts: tuple[str, ...],
        secret: bytes,
        record: Callable[[Job], dict[str, Any]],
        *,
        private: bool = False,
    ) -> None:
        self._store, self._metrics, self._hosts, self._secret = store, metrics, hosts, secret
        self._record, self._private = record, private
        self._threads = ThreadPoolExecutor(8, "webhooks")

    def check(self, url: str) -> None:
        """Raises Refused where that address is not allowed."""
        outside.check_url(url, self._hosts)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            due = await asyncio.to_thread(self._store.callbacks_due, time.time())
            sent = [asyncio.get_running_loop().run_in_executor(self._threads, self._send, job) for job in due]
            await asyncio.gather(*sent, return_exceptions=True)
            await asyncio.sleep(1.0)

    def _send(self, job: Job) -> None:
        assert job.callback_url is not None
        message = {"type": f"video.{job.status}", "created_at": int(job.completed_at or 0), "data": self._record(job)}
        body = json.dumps({"id": f"evt_{job.id}", "object": "event", **message}).encode()
        headers = signed_headers(self._secret, f"evt_{job.id}", body, int(time.time()))
        try:
            status = outside.post(job.callback_url, self._hosts, body, headers, private=self._private)
            arrived, why = 200 <= status < 300, f"status {status}"
        except Exception as error:  # whatever it is, it may not keep the others from being sent
            arrived, why = False, type(error).__name__
        again = None if arrived or job.callback_tries >= len(_WAITS_S) else time.time() + _WAITS_S[job.callback_tries]
        self._store.note_callback(job.id, due=again)
        outcome = "sent" if arrived else "given_up" if again is None else "again"
        self._metrics.webhooks.labels(outcome).inc()
        if not arrived:
            log.warning("a webhook did not arrive: %s", why, extra={"job": job.id, "next": outcome})
