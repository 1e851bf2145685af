"""What FFmpeg says while it works: some damage is told nowhere else. Runs in helper processes only."""

import os
import re

import av
from av.container import InputContainer


class FFmpegLog:
    """FFmpeg's error lines, in a pipe that is read now and then and never blocks the writer."""

    def __init__(self) -> None:
        self._read, write = os.pipe()
        for fd in (self._read, write):
            os.set_blocking(fd, False)
        os.dup2(write, 2)
        av.logging.restore_default_callback()
        av.logging.set_libav_level(av.logging.ERROR)
        self._lines = ""

    def said_by(self, container: InputContainer) -> str:
        """FFmpeg's description of an open file, which tells more of its streams than PyAV does."""
        before = self.text()
        av.logging.set_libav_level(av.logging.INFO)
        container.dumps_format()  # type: ignore[attr-defined]  # missing in PyAV's stubs
        av.logging.set_libav_level(av.logging.ERROR)
        self._lines = ""
        said, self._lines = self.text(), before
        return said

    def text(self) -> str:
        """The last 64 KiB of what was said so far."""
        try:
            while chunk := os.read(self._read, 1 << 16):
                self._lines = (self._lines + chunk.decode(errors="replace"))[-(1 << 16) :]
        except BlockingIOError:
            pass
        return self._lines

    def forget(self, words: re.Pattern[str]) -> None:
        """What was said so far in such words counts no more."""
        self._lines = words.sub("", self._lines)
