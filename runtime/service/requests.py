"""What a client may ask for: the fields of a form or a JSON body, checked by name, kind and the service's limits.

The parameters of an edit come from the library's own table; those that name files of this machine, or could take its
memory, are left out.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from fairy.kernels.errors import InputError
from fairy.runtime.options import Choice, Flag, Kind, Number, Option, Text, Time, Whole, options_of
from fairy.runtime.plan.file_request import DEFAULT_CRF, FileRequest, check_encoding, check_target
from fairy.runtime.plan.params import EditParams, Prompts
from fairy.runtime.service.options import ServiceOptions
from fairy.runtime.service.problems import Problem, of_input_error, of_pydantic
from fairy.runtime.video.codecs import CHOICES

_PATHS = ("anchor_images", "control", "depth", "mask", "mask_feather", "mask_from", "style")
LEFT_OUT = (*_PATHS, "max_pixels", "micro_batch", "order", "size")
"""Paths, what the service limits itself, and `size`, which is a picture's size here."""
ENCODING = ("codec", "lossless", "pixel_format", "bit_depth")
"""What of a written file's options a client may choose, beside `crf`."""
LONGEST_PROMPT = 4000
MOST_ANCHORS = 16
MOST_PROMPTS = 100
_SIZE = re.compile(r"(\d{1,5})x(\d{1,5})")


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that can be done, as far as that is known without the video.

    Attributes:
        params: of the edit, in JSON's values, as `EditParams` takes them.
        container, crf, compare: how the result is written; encoding: what else is asked of it, by name.
        source_video_id: a job whose source is edited again; source_url: from where it is fetched.
    """

    prompt: str
    params: dict[str, Any]
    container: str = "mp4"
    crf: int = DEFAULT_CRF
    compare: bool = False
    model: str | None = None
    priority: int = 0
    callback_url: str | None = None
    source_video_id: str | None = None
    source_url: str | None = None
    encoding: dict[str, Any] = field(default_factory=dict)

    def stored(self) -> dict[str, Any]:
        """What the row keeps beside the prompt."""
        kept = {"params": self.params, "container": self.container, "crf": self.crf, "compare": self.compare}
        return kept | ({"encoding": self.encoding} if self.encoding else {})

    def fingerprint(self, sha256: str) -> str:
        """The same for the same request with the same video."""
        text = json.dumps([self.prompt, self.stored(), self.callback_url, sha256], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


class VideoRequestBase(BaseModel):
    """The fields of OpenAI's videos API, and ours beside the parameters of an edit."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(
        min_length=1, max_length=LONGEST_PROMPT, description="The instruction.", examples=["make it snow"]
    )
    model: str | None = Field(None, max_length=200, description="The model that is served, see /v1/models.")
    seconds: float | str | None = Field(
        None, description="Edit so many seconds from `start` on; without it, all of the video.", examples=["4"]
    )
    size: str | None = Field(
        None,
        description="WIDTHxHEIGHT, whose longer side becomes the long side; the shape stays the source's.",
        examples=["512x384"],
    )
    source_video_id: str | None = Field(None, max_length=64, description="Edit the source of this earlier video again.")
    source_url: str | None = Field(None, max_length=2000, description="Fetch the source from a host that is allowed.")
    container: Literal["mp4", "mov", "mkv", "webm"] = Field("mp4", description="Of the result.")
    crf: int = Field(DEFAULT_CRF, ge=0, le=51, description="Quality of the result, 0 (best) to 51.")
    compare: bool = Field(False, description="Also make a video with source and result side by side.")
    priority: int = Field(0, ge=-10, le=10, description="Higher ones are taken first, among those of a key's rights.")
    callback_url: str | None = Field(None, max_length=2000, description="Where a signed webhook is sent at the end.")


@lru_cache(maxsize=1)
def video_request() -> type[VideoRequestBase]:
    """The model of a request: the base, every parameter of an edit that a client may choose, and how it is encoded."""
    fields: dict[str, Any] = {}
    for name, option in (edit_options() | encoding_options()).items():
        fields[name] = (_annotation(option.kind) | None, Field(None, description=_description(option)))
    return create_model("VideoRequest", __base__=VideoRequestBase, **fields)


def edit_options() -> dict[str, Option]:
    """The parameters of an edit that a client may choose."""
    return {name: option for name, option in options_of(EditParams).items() if name not in LEFT_OUT}


def encoding_options() -> dict[str, Option]:
    """How the result may be encoded: it is one file."""
    known = options_of(FileRequest)
    codec = replace(known["codec"], kind=Choice(CHOICES), help="How pictures are encoded")
    return {name: codec if name == "codec" else known[name] for name in ENCODING}


def _annotation(kind: Kind) -> Any:
    if isinstance(kind, Whole):
        return int
    if isinstance(kind, Time):
        return float | str
    if isinstance(kind, Number):
        return float
    if isinstance(kind, Flag):
        return bool
    if isinstance(kind, Choice):
        return Literal[kind.choices]
    if isinstance(kind, Text):
        return str
    return int | str | list[Any] | dict[str, Any] if isinstance(kind, Prompts) else int | str | list[int]


def _description(option: Option) -> str:
    usual = f" [{option.ends_in}]" if option.ends_in else ""
    takes = " (a list of [frame or seconds, instruction])" if isinstance(option.kind, Prompts) else ""
    return f"{option.sentence}{takes}{usual}."


def asked_of(values: Mapping[str, Any], limits: ServiceOptions, model: str) -> Asked:
    """The request in these fields of a form (text) or a JSON object.

    Raises:
        Problem: a field is unknown, of another kind or impossible; it names the field.
    """
    try:
        given = video_request().model_validate(dict(values))
    except ValidationError as error:
        raise of_pydantic(error) from error
    if given.model not in (None, model):
        raise Problem(
            404,
            f"model = {given.model!r} is not served here; leave it out, or say {model}.",
            code="model_not_found",
            param="model",
        )
    try:
        params = {name: _value(name, option.kind, getattr(given, name)) for name, option in edit_options().items()}
        params = {name: value for name, value in params.items() if value is not None}
        params |= _of_size(given.size, params) | _of_seconds(given.seconds, params)
        _check_limits(params, limits)
        EditParams(given.prompt, **params)
        encoding = _encoding(given)
    except InputError as error:
        raise of_input_error(error) from error
    return Asked(
        given.prompt,
        json.loads(json.dumps(params)),
        given.container,
        given.crf,
        given.compare,
        given.model,
        given.priority,
        given.callback_url,
        given.source_video_id,
        given.source_url,
        encoding,
    )


def _encoding(given: Any) -> dict[str, Any]:
    """How the result is encoded, as far as that is said. Raises InputError where its container cannot hold it."""
    known = encoding_options()
    said = {name: _value(name, option.kind, getattr(given, name)) for name, option in known.items()}
    said = {name: value for name, value in said.items() if value is not None and value != known[name].default}
    usual = {name: option.default for name, option in known.items()}
    check_target(Path(f"result.{given.container}"), check_encoding(crf=given.crf, **(usual | said)))
    return said


def _value(name: str, kind: Kind, value: Any) -> Any:
    """A value as the library takes it; text of a form is read as the command line's would be."""
    if value is None:
        return None
    if isinstance(kind, Prompts):
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except ValueError as error:
                remedy = 'give JSON such as [[0, "make it snow"], [4.5, "make it night"]]'
                raise InputError("is no list", name=name, value=value[:80], remedy=remedy) from error
        return [list(pair) for pair in kind.check(name, value)]
    if isinstance(value, str) and not isinstance(kind, Text | Choice):
        return kind.parse(name, value)
    return kind.check(name, value)


def _of_size(size: str | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """The long side that WIDTHxHEIGHT asks for, unless that is said by itself."""
    if size is None or "long_side" in params:
        return {}
    found = _SIZE.fullmatch(size)
    if found is None:
        raise InputError("is no size", name="size", value=size, remedy="give WIDTHxHEIGHT in pixels, as 512x384")
    return {"long_side": options_of(EditParams)["long_side"].check("size", max(int(found[1]), int(found[2])))}


def _of_seconds(seconds: float | str | None, params: Mapping[str, Any]) -> dict[str, Any]:
    """Where an edit of that length ends, unless that is said by itself."""
    if seconds is None or "end" in params:
        return {}
    try:
        length = float(seconds)
    except ValueError:
        length = 0.0
    if not 0 < length < 1e6:
        raise InputError("is not possible", name="seconds", value=seconds, remedy="give a number above 0")
    return {"end": params.get("start", 0.0) + length}


def _check_limits(params: Mapping[str, Any], limits: ServiceOptions) -> None:
    for name, most in (("num_inference_steps", limits.max_steps), ("long_side", limits.max_long_side)):
        if (params.get(name) or 0) > most:
            remedy = f"this service takes at most {most}"
            raise InputError("is not possible", name=name, value=params[name], remedy=remedy)
    anchors = params.get("anchors")
    if (anchors if isinstance(anchors, int) else len(anchors or ())) > MOST_ANCHORS:
        raise InputError("is not possible", name="anchors", value=anchors, remedy=f"ask for at most {MOST_ANCHORS}")
    prompts = params.get("prompts") or ()
    if len(prompts) > MOST_PROMPTS or any(len(text) > LONGEST_PROMPT for _, text, *_ in prompts):
        remedy = f"give at most {MOST_PROMPTS}, each of at most {LONGEST_PROMPT} characters"
        raise InputError("asks for too much", name="prompts", remedy=remedy)
    for name in ("negative_prompt", "source_prompt"):
        if len(params.get(name) or "") > LONGEST_PROMPT:
            raise InputError("is too long", name=name, remedy=f"it may have {LONGEST_PROMPT} characters")
