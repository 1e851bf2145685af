"""How edited pictures are encoded: which codec, in which container, with which samples, with or without loss."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.video.formats import Output


@dataclass(frozen=True, slots=True)
class Codec:
    """One codec as it is written.

    Attributes:
        encoder: FFmpeg's, for samples of usual files; pixels: those samples.
        odd: where a side is odd, which 4:2:0 has no place for; None = it is refused.
        deep: samples of 10 bits; None = none are written.
        exact: encoder and samples of files without any loss of RGB; None = there are none.
        muxers: containers that hold it.
        clear: samples with transparency; None = it holds none.
        clear_muxers: containers that hold that too; None = all of them.
    """

    encoder: str
    pixels: str
    odd: str | None
    deep: str | None
    exact: tuple[str, str] | None
    muxers: tuple[str, ...]
    clear: str | None = None
    clear_muxers: tuple[str, ...] | None = None


_QT, _MP4, _MKV, _WEBM, _AVI, _TS = "mov", "mp4", "matroska", "webm", "avi", "mpegts"
CODECS: Mapping[str, Codec] = {
    "h264": Codec(
        "libx264", "yuv420p", "yuv444p", "yuv420p10le", ("libx264rgb", "rgb24"), (_MP4, _QT, _MKV, _AVI, _TS)
    ),
    "hevc": Codec("libx265", "yuv420p", "yuv444p", "yuv420p10le", ("libx265", "gbrp"), (_MP4, _QT, _MKV, _TS)),
    "av1": Codec("libsvtav1", "yuv420p", None, "yuv420p10le", None, (_MP4, _MKV, _WEBM)),
    "vp9": Codec(
        *("libvpx-vp9", "yuv420p", "yuv444p", None, ("libvpx-vp9", "gbrp"), (_MP4, _MKV, _WEBM)),
        clear="yuva420p",
        clear_muxers=(_MKV, _WEBM),
    ),
    "prores": Codec("prores_ks", "yuv422p10le", "yuv444p10le", "yuv422p10le", None, (_QT, _MKV), "yuva444p10le"),
    "ffv1": Codec("ffv1", "bgr0", "bgr0", "gbrp10le", ("ffv1", "bgr0"), (_MKV, _AVI), "bgra"),
    "gif": Codec("gif", "pal8", "pal8", None, None, ("gif",)),
    "webp": Codec("libwebp_anim", "yuv420p", "yuv420p", None, ("libwebp_anim", "bgra"), ("webp",), "yuva420p"),
}
PNG, EXR = "png", "exr"
FOLDERS = (PNG, EXR)
"""Instead of a codec: a folder of pictures."""
CHOICES = ("h264", "hevc", "av1", "vp9", "prores", "ffv1")
"""Those that a user names; the others are their containers' own."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """What is asked of an output file beside its container.

    Attributes:
        codec: a name of `CODECS`; None = the container's usual one.
        crf: constant rate factor of codecs that have one, 0 (best) to 51.
        lossless: every picture comes back bit for bit.
        pixel_format: FFmpeg's name of the samples; None = those that players show.
        bit_depth: 8 or 10.
    """

    codec: str | None = None
    crf: int = 18
    lossless: bool = False
    pixel_format: str | None = None
    bit_depth: int = 8

    def settle(self, into: Output, width: int, height: int) -> tuple[str, str]:
        """FFmpeg's encoder and the samples for pictures of a size in a kind of file.

        Raises:
            InputError: they do not go together; the sentence says what does.
        """
        name = self.codec or into.codec
        codec = CODECS.get(name)
        if codec is None:
            raise InputError("is not known", name="codec", value=name, remedy=f"choose one of {', '.join(CHOICES)}")
        if into.muxer not in codec.muxers:
            able = [other for other in CHOICES if into.muxer in CODECS[other].muxers]
            remedy = f"choose {' or '.join(able)}" if able else "leave it out"
            raise InputError(f"is not held by {into.title}", name="codec", value=name, remedy=remedy)
        if self.lossless:
            return self._lossless(name, codec)
        if self.pixel_format is not None:
            return codec.encoder, self.pixel_format
        if self.bit_depth == 10:
            return codec.encoder, self._deep(name, codec, odd=bool(width % 2 or height % 2))
        if (width % 2 or height % 2) and codec.odd is None:
            problem = f"takes no pictures with an odd side, as {width}×{height}"
            remedy = "choose another codec, or another long_side (--long-side)"
            raise InputError(problem, name="codec", value=name, remedy=remedy)
        return codec.encoder, (codec.odd or "") if width % 2 or height % 2 else codec.pixels

    def clear(self, into: Output, width: int, height: int) -> str | None:
        """The samples that hold transparency too; None where what is asked for holds none."""
        name = self.codec or into.codec
        codec = CODECS[name]
        if self.pixel_format is not None:
            return self.pixel_format if has_alpha(self.pixel_format) else None
        if codec.clear is None or into.muxer not in (codec.clear_muxers or codec.muxers):
            return None
        if self.lossless:
            return "bgra" if codec.exact and codec.exact[1] in ("bgr0", "bgra") else None
        halved, deeper = "420" in codec.clear, self.bit_depth == 10 and "10" not in codec.clear
        return None if deeper or (halved and (width % 2 or height % 2)) else codec.clear

    def _lossless(self, name: str, codec: Codec) -> tuple[str, str]:
        if codec.exact is None:
            able = ", ".join(other for other in CHOICES if CODECS[other].exact)
            raise InputError(f"is not possible with {name}", name="lossless", remedy=f"choose one of {able}")
        for option, given in (
            ("pixel_format", self.pixel_format),
            ("bit_depth", self.bit_depth if self.bit_depth > 8 else None),
        ):
            if given is not None:
                problem = "does not go with lossless, which keeps the 8 bits of red, green and blue as they are"
                raise InputError(problem, name=option, value=given, remedy="leave one of them out")
        return codec.exact

    def _deep(self, name: str, codec: Codec, *, odd: bool) -> str:
        deep = codec.deep and (codec.deep.replace("420", "444").replace("422", "444") if odd else codec.deep)
        if deep is None or (odd and codec.odd is None):
            able = ", ".join(other for other in CHOICES if CODECS[other].deep)
            remedy = f"choose one of {able}, and even sides" if odd else f"choose one of {able}"
            raise InputError(f"is not possible with {name}", name="bit_depth", value=10, remedy=remedy)
        return deep


def check_folder(encoding: Encoding) -> None:
    """Refuse what a folder of pictures cannot be asked for.

    Raises:
        InputError: samples were named, or EXR, which is linear light in half precision, is asked for without loss.
        MachineError: what writes EXR is not installed.
    """
    exr = encoding.codec == EXR
    for option, given in (
        ("pixel_format", encoding.pixel_format),
        ("bit_depth", encoding.bit_depth if encoding.bit_depth > 8 else None),
        ("lossless", True if exr and encoding.lossless else None),
    ):
        if given is not None:
            kind = "16 bit floating point numbers" if exr else "8 bits"
            problem = f"does not fit codec = {encoding.codec}, a folder of pictures of {kind}"
            raise InputError(problem, name=option, value=given, remedy="leave it out")
    if exr and find_spec("OpenEXR") is None:
        raise MachineError("codec = exr needs OpenEXR; run: pip install 'fairy-runtime[exr]'")


def options_of(encoder: str, pixels: str, crf: int, *, lossless: bool, in_order: bool) -> dict[str, str]:
    """FFmpeg's options of an encoder; `in_order`: pictures are stored in the order in which they are shown."""
    scale = str(round(crf * 63 / 51))  # of codecs whose scale runs to 63, where x264's runs to 51
    if encoder == "libvpx-vp9":
        quality = {"lossless": "1"} if lossless else {"crf": scale, "b": "0"}
        return {**quality, "deadline": "good", "cpu-used": "4"}
    if encoder == "libsvtav1":
        return {"crf": scale, "preset": "8"}
    if encoder == "prores_ks":
        clear = {"alpha_bits": "16"} if has_alpha(pixels) else {}
        return {"profile": "4444" if "444" in pixels else "hq", "vendor": "apl0", **clear}
    if encoder == "ffv1":
        return {"level": "3", "slicecrc": "1"}
    if encoder == "libwebp_anim":
        return {"lossless": "1"} if lossless else {"quality": str(100 - crf)}
    if encoder == "libx265":  # its pictures depend on the number of its threads
        of_x265 = ["pools=none", "frame-threads=1", "log-level=none"]
        of_x265 += ["lossless=1"] * lossless + ["bframes=0"] * in_order
        return {"preset": "medium", "x265-params": ":".join(of_x265)} | ({} if lossless else {"crf": str(crf)})
    if encoder not in ("libx264", "libx264rgb"):
        return {}
    # Without cpu-independent the macroblock-tree code of x264 core 165 reads memory that nobody wrote, and the
    # same small pictures give other bytes in one run of ten; with it they are also equal on every processor.
    quality = {"qp": "0"} if lossless else {"crf": str(crf)}
    return {**quality, "preset": "medium", "x264-params": "cpu-independent=1"} | ({"bf": "0"} if in_order else {})


def has_alpha(pixels: str) -> bool:
    """Whether samples say how opaque they are."""
    return pixels.startswith(("yuva", "gbrap", "rgba", "bgra", "argb", "abgr"))


def is_rgb(pixels: str) -> bool:
    """Whether samples are red, green and blue."""
    return pixels.startswith(("rgb", "bgr", "gbr", "pal"))
