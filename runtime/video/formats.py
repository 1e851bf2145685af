"""Which containers, codecs and colours are read and written. Everything that may be decoded is listed here."""

from dataclasses import dataclass
from pathlib import Path

from fairy.kernels.errors import InputError

DEMUXERS = (
    *("mov", "mp4", "matroska", "webm", "avi", "mpegts", "mpeg", "flv", "asf", "dv", "gif", "apng", "yuv4mpegpipe"),
)
READS = "MP4/MOV, Matroska/WebM, AVI, MPEG-TS/PS, FLV, WMV, DV, GIF, APNG and WebP"
VIDEO_CODECS = {
    "h264": "h264",
    "hevc": "hevc",
    "vp9": "vp9",
    "libvpx-vp9": "vp9",
    "av1": "av1",
    "libdav1d": "av1",
    "mpeg4": "mpeg4",
    "prores": "prores",
    "mjpeg": "mjpeg",
    "vp8": "vp8",
    "libvpx": "vp8",
    "mpeg2video": "mpeg2",
    "mpeg1video": "mpeg1",
    "h263": "h263",
    "flv": "flv1",
    "msmpeg4": "msmpeg4v3",
    "msmpeg4v2": "msmpeg4v2",
    "msmpeg4v1": "msmpeg4v1",
    "wmv1": "wmv1",
    "wmv2": "wmv2",
    "ffv1": "ffv1",
    "huffyuv": "huffyuv",
    "ffvhuff": "ffvhuff",
    "rawvideo": "raw",
    "v210": "v210",
    "dvvideo": "dv",
    "dnxhd": "dnxhd",
    "qtrle": "qtrle",
    "png": "png",
    "gif": "gif",
    "apng": "apng",
}
"""FFmpeg's decoder -> the codec's name."""
WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""The decoder that also decodes the second picture, of transparency, that WebM stores beside the first."""

# While a file is opened FFmpeg may decode a little sound to learn its parameters; it is copied undecoded later.
AUDIO_DECODERS = (
    "aac,aac_latm,ac3,adpcm_ima_wav,adpcm_ms,adpcm_swf,alac,amrnb,amrwb,dca,eac3,flac,libopus,mp1,mp1float,"
    "mp2,mp2float,mp3,mp3float,opus,vorbis,wmav1,wmav2,"
    "pcm_alaw,pcm_f32le,pcm_mulaw,pcm_s16be,pcm_s16le,pcm_s24be,pcm_s24le,pcm_s32le,pcm_u8"
)
OTHER_DECODERS = "ass,ssa,mov_text,srt,subrip,text,webvtt,png,bmp"
"""Of subtitles, and of cover art."""

HDR_TRANSFERS = {16: "PQ (SMPTE ST 2084)", 18: "HLG (ARIB STD-B67)"}
MATRICES = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
"""H.273's matrix -> swscale's number for it; the others (YCgCo, constant luminance, …) it cannot convert."""

# swscale's flags by their numbers, because PyAV names them only from version 18 on.
_BILINEAR, _BICUBIC, _FULL_CHROMA_OUT, _FULL_CHROMA_IN, _ACCURATE, _BITEXACT = 2, 4, 1 << 13, 1 << 14, 1 << 18, 1 << 19
TO_RGB = _BILINEAR | _ACCURATE | _FULL_CHROMA_OUT | _BITEXACT
"""Within 2 of 255, and half the time of the bicubic kernel, whose overshoot errs by 7; fast paths err by 3 to 10."""
TO_YUV = _BICUBIC | _ACCURATE | _FULL_CHROMA_IN | _BITEXACT


@dataclass(frozen=True, slots=True)
class Output:
    """One kind of file that is written."""

    muxer: str
    title: str
    codec: str
    """Where none is asked for; a name of `codecs.py`."""
    clock: str
    """"any": keeps every time stamp; "ms", "10ms", "90kHz": rounds to it; "rate": knows a constant rate only."""
    pictures_only: bool = False
    """It holds no sound and nothing else beside the pictures."""


_MP4 = Output("mp4", "MP4", "h264", "any")
_MKV = Output("matroska", "Matroska", "h264", "ms")
OUTPUTS = {
    ".mp4": _MP4,
    ".m4v": _MP4,
    ".mov": Output("mov", "QuickTime", "h264", "any"),
    ".mkv": _MKV,
    ".webm": Output("webm", "WebM", "vp9", "ms"),
    ".avi": Output("avi", "AVI", "h264", "rate"),
    ".ts": Output("mpegts", "MPEG-TS", "h264", "90kHz"),
    ".gif": Output("gif", "GIF", "gif", "10ms", pictures_only=True),
    ".webp": Output("webp", "WebP", "webp", "ms", pictures_only=True),
}


def whitelist(max_pixels: int | None = None) -> dict[str, str]:
    """FFmpeg's options for opening a file that may read and decode nothing but what is listed here."""
    limit = {} if max_pixels is None else {"max_pixels": str(max_pixels)}
    return {
        "format_whitelist": ",".join(DEMUXERS),
        "protocol_whitelist": "file,pipe",
        "codec_whitelist": ",".join([*VIDEO_CODECS, AUDIO_DECODERS, OTHER_DECODERS]),
    } | limit


def output_format(path: Path) -> Output:
    """The format that the file's extension asks for."""
    if path.suffix.lower() in OUTPUTS:
        return OUTPUTS[path.suffix.lower()]
    known = ", ".join(OUTPUTS)
    what = f"the extension {path.suffix!r}" if path.suffix else "no extension"
    raise InputError(f"{path} has {what}, but a video is written as one of {known}.")
