"""Forms with a video in them: the video streams to the disk while it arrives, the rest stays small."""

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from fairy.runtime.service.files import SPARE_BYTES, DataFolder
from fairy.runtime.service.problems import Problem, disk_full

MOST_FIELDS = 200
LONGEST_FIELD_BYTES = 64 * 1024
LONGEST_NAME_BYTES = 1024
_FILE_FIELDS = ("input_reference", "video")
_FLUSH_BYTES = 1 << 20


@dataclass(slots=True)
class Form:
    """What arrived: text fields (those given several times as a list), and the video, if there was one.

    Attributes:
        video: where its bytes lie, synced; the caller moves or removes it.
        file_name: what the client calls it, for display alone.
    """

    fields: dict[str, str | list[str]] = field(default_factory=dict)
    video: Path | None = None
    file_name: str = ""
    bytes: int = 0
    sha256: str = ""

    def discard(self) -> None:
        """Remove the video."""
        if self.video is not None:
            self.video.unlink(missing_ok=True)
            self.video = None


async def receive_form(request: Request, folder: DataFolder, *, max_bytes: int, idle_s: float) -> Form:
    """Read a multipart form whose file parts are `input_reference` or `video`.

    Raises:
        Problem: it is no such form, is larger than allowed, stopped arriving, or the disk is full; nothing is left.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not 0 < len(options.get(b"boundary", b"")) <= 70:
        raise Problem(
            400, "The request must be multipart/form-data; send the video as input_reference.", code="not_multipart"
        )
    check_room(request, folder, max_bytes)
    receiver = _Receiver(folder, max_bytes)
    whole = False
    try:
        parser = MultipartParser(options[b"boundary"], receiver.callbacks(), max_size=max_bytes + (16 << 20))
        async for chunk in _chunks(request, idle_s):
            parser.write(chunk)
            if receiver.pending_bytes >= _FLUSH_BYTES:
                await asyncio.to_thread(receiver.flush)
        parser.finalize()
        if not receiver.ended:
            raise Problem(400, "The form ended too early; send it again.", code="incomplete_form")
        await asyncio.to_thread(receiver.sync)
        whole = True
    except MultipartParseError as error:
        raise Problem(400, "The form is damaged; send it again.", code="damaged_form") from error
    except ClientDisconnect:
        raise Problem(400, "The client went away before the form was whole.", code="incomplete_form") from None
    except OSError as error:
        raise _of_disk(error) from error
    finally:
        receiver.close()
        if not whole:
            receiver.form.video = receiver.path
            receiver.form.discard()
    return receiver.form


def check_room(request: Request, folder: DataFolder, max_bytes: int) -> None:
    """Refuse what is announced to be too large for the service or its disk before a byte is read."""
    text = request.headers.get("content-length", "")
    announced = int(text) if text.isdigit() and len(text) < 20 else 0
    if announced > max_bytes + (16 << 20):
        raise too_large(max_bytes)
    if folder.free_bytes() - SPARE_BYTES < 2 * announced:
        raise disk_full()


def too_large(max_bytes: int) -> Problem:
    """413."""
    sentence = f"The video is larger than {max_bytes / 1e6:.0f} MB, the most that is taken; send a shorter one."
    return Problem(413, sentence, code="too_large", param="input_reference")


def _of_disk(error: OSError) -> Problem:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return disk_full()
    return Problem(500, "The service's disk failed.", code="disk_failed")


async def _chunks(request: Request, idle_s: float) -> AsyncIterator[bytes]:
    stream = request.stream()
    while True:
        try:
            yield await asyncio.wait_for(anext(stream), idle_s)
        except StopAsyncIteration:
            return
        except TimeoutError:
            sentence = f"Nothing arrived for {idle_s:g} s; send the form again."
            raise Problem(408, sentence, code="upload_timeout", headers={"x-should-retry": "false"}) from None


class _Receiver:
    """The parser's callbacks. File bytes wait in memory until `flush`, which blocks."""

    def __init__(self, folder: DataFolder, max_bytes: int) -> None:
        self.form, self.path, self.ended = Form(), folder.incoming(), False
        self._folder = folder
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._pending: list[bytes] = []
        self.pending_bytes = 0
        self._hash = hashlib.sha256()
        self._parts = 0
        self._headers: dict[bytes, bytes] = {}
        self._name, self._value = b"", b""
        self._field = ""
        self._text = bytearray()
        self._is_file = False

    def callbacks(self) -> Any:  # the parser's own type
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._all,
        }

    def flush(self) -> None:
        """Write what waits."""
        pending, self._pending, self.pending_bytes = self._pending, [], 0
        if pending and self._folder.free_bytes() < SPARE_BYTES:
            raise disk_full()
        for piece in pending:
            self._hash.update(piece)
            assert self._file is not None
            self._file.write(piece)

    def sync(self) -> None:
        """Everything is on the disk."""
        self.flush()
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self.form.sha256 = self._hash.hexdigest()
            self.form.video = self.path

    def close(self) -> None:
        if self._file is not None:
            with suppress(OSError):  # a full disk, which was told before
                self._file.close()

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MOST_FIELDS:
            raise Problem(400, f"The form has more than {MOST_FIELDS} fields; send fewer.", code="too_many_fields")
        self._headers, self._name, self._value, self._text = {}, b"", b"", bytearray()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name = self._short(self._name + data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value = self._short(self._value + data[start:end])

    def _short(self, header: bytes) -> bytes:
        if len(header) > 4 * LONGEST_NAME_BYTES:
            raise Problem(
                400, "A part of the form has too long a header; send a shorter file name.", code="damaged_form"
            )
        return header

    def _header_end(self) -> None:
        if len(self._headers) >= 16:
            raise Problem(400, "A part of the form has too many headers.", code="damaged_form")
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _headers_end(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise Problem(400, "A part of the form has no name.", code="damaged_form")
        self._field = options[b"name"].decode(errors="replace")
        self._is_file = b"filename" in options
        if not self._is_file:
            return
        if self._field not in _FILE_FIELDS:
            sentence = f"{self._field[:80]!r} is no file that is known here; send the video as input_reference."
            raise Problem(400, sentence, code="unknown_file", param=self._field[:80])
        if self._file is not None:
            raise Problem(400, "The form has two videos; send one.", code="two_videos", param=self._field)
        self.form.file_name = display_name(options[b"filename"].decode(errors="replace"))
        self._file = os.fdopen(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if not self._is_file:
            self._text += data[start:end]
            if len(self._text) > LONGEST_FIELD_BYTES:
                sentence = f"{self._field[:80]!r} is longer than {LONGEST_FIELD_BYTES} bytes; shorten it."
                raise Problem(400, sentence, code="too_long", param=self._field[:80])
            return
        self.form.bytes += end - start
        if self.form.bytes > self._max_bytes:
            raise too_large(self._max_bytes)
        self._pending.append(data[start:end])
        self.pending_bytes += end - start

    def _end(self) -> None:
        if self._is_file:
            return
        try:
            text = self._text.decode()
        except UnicodeDecodeError:
            raise Problem(
                400, f"{self._field[:80]!r} is no UTF-8 text.", code="not_text", param=self._field[:80]
            ) from None
        name = self._field
        if name.endswith("[]"):
            values = self.form.fields.setdefault(name[:-2], [])
            if isinstance(values, list):
                values.append(text)
                return
        if name.removesuffix("[]") in self.form.fields:
            raise Problem(400, f"{name[:80]!r} is given twice; give it once.", code="given_twice", param=name[:80])
        self.form.fields[name] = text

    def _all(self) -> None:
        self.ended = True


def display_name(name: str) -> str:
    """A client's file name as it may be shown and suggested again: its last part, printable, not too long."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    shown = "".join(c for c in last if c.isprintable() and c not in '"<>|:*?').strip(". ")
    return shown.encode()[:200].decode(errors="ignore") or "video"
