"""`fairy generate`, `story`, `interpolate` and `upscale`: clips from text, smoother and larger videos."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer

from fairy.kernels.errors import InputError
from fairy.runtime.allocation import keep_freed_memory
from fairy.runtime.cli.progress import progress_bar, telling_of_journal
from fairy.runtime.cli.shared import Quiet, silence_libraries
from fairy.runtime.cli.table import chosen, with_options
from fairy.runtime.generation.params import (
    ClipRequest,
    GenerateParams,
    GeneratorSetup,
    InterpolateParams,
    StoryParams,
    UpscaleParams,
)
from fairy.runtime.models import IMAGEN_VIDEO
from fairy.runtime.options import options_of

Out = Annotated[Path, typer.Option("-o", "--out", help="The file to write: .mp4 .m4v .mov .mkv .webm .avi .ts")]
Video = Annotated[Path, typer.Argument(metavar="IN", help="A video file, or a folder of images (needs --source-fps).")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Count what every stage would take, and make nothing; needs no weights.")
]
FROM_TEXT = ("preview", "keep_stage", "from_stage", "motion_adapter")  # options of clips from text alone
Resume = Annotated[
    bool, typer.Option("--resume", help="Go on from what an interrupted job into the same file had finished.")
]
MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        help="How: cascade (a generator's stages, as Make-A-Video), imagen_video (its seven) or phenaki (a story).",
    ),
]
METHODS = ("cascade", "imagen_video", "phenaki")
USUAL_S = 4.0  # seconds of a clip by --method phenaki


@with_options(GeneratorSetup, GenerateParams, ClipRequest)
def generate(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='What to show: "a red ball rolls to the left".')],
    out: Out,
    method: MethodOption = "cascade",
    resume: Resume = False,
    dry_run: DryRun = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Make a video from a text."""
    if method not in METHODS:
        raise InputError("is not known", name="method", value=method, remedy=f"choose one of {', '.join(METHODS)}")
    if method == "phenaki":
        if dry_run:
            remedy = "leave it out: only cascades are counted"
            raise InputError("is not for --method phenaki", name="dry_run", value=True, remedy=remedy)
        _story(_one_scene(GenerateParams(prompt, **chosen(GenerateParams, given))), out, resume, quiet, given)
        return
    if method == "imagen_video":
        given = {"model": IMAGEN_VIDEO, **given}
    if quiet:
        silence_libraries()
    if dry_run:
        _count(prompt, given)
        return
    params, setup = GenerateParams(prompt, **chosen(GenerateParams, given)), _setup(given)
    from fairy.runtime.generation.generator import Generator

    keep_freed_memory()
    with Generator.from_pretrained(**setup) as generator, telling_of_journal(), progress_bar(quiet) as on_progress:
        done = generator.generate_file(
            out, params, **chosen(ClipRequest, given), on_progress=on_progress, resume=resume
        )
    _tell(done, out, given)


@with_options(GeneratorSetup, StoryParams, ClipRequest, skip=(*FROM_TEXT, "backend", "store", "offload"))
def story(
    scenes: Annotated[
        Path, typer.Argument(metavar="STORY", help="A YAML or JSON file: prompts, and how long each lasts.")
    ],
    out: Out,
    resume: Resume = False,
    quiet: Quiet = False,
    **given: Any,
) -> None:
    """Make a video of any length from a text that changes."""
    from fairy.runtime.plan.story import read_scenes

    _story(StoryParams(read_scenes(scenes), **chosen(StoryParams, given)), out, resume, quiet, given)


@with_options(GeneratorSetup, InterpolateParams, ClipRequest, skip=FROM_TEXT)
def interpolate(video: Video, out: Out, resume: Resume = False, quiet: Quiet = False, **given: Any) -> None:
    """Make a video smoother: frames between its frames."""
    from fairy.runtime.generation.video_stages import Interpolator

    _run(Interpolator, InterpolateParams(**chosen(InterpolateParams, given)), video, out, resume, quiet, given)


@with_options(GeneratorSetup, UpscaleParams, ClipRequest, skip=FROM_TEXT)
def upscale(video: Video, out: Out, resume: Resume = False, quiet: Quiet = False, **given: Any) -> None:
    """Make a video larger."""
    from fairy.runtime.generation.video_stages import Upscaler

    _run(Upscaler, UpscaleParams(**chosen(UpscaleParams, given)), video, out, resume, quiet, given)


def _count(prompt: str, given: Mapping[str, Any]) -> None:
    """Tell what a clip would take, stage by stage."""
    from fairy.runtime.cli.engines import size_text
    from fairy.runtime.device import resolve_device, resolve_dtype
    from fairy.runtime.generation.counts import count_clip
    from fairy.runtime.models import find_generator

    params, setup = GenerateParams(prompt, **chosen(GenerateParams, given)), GeneratorSetup(**_setup(given))
    dtype = resolve_dtype(setup.dtype, resolve_device(setup.device))
    stages = count_clip(find_generator(setup.model), params, dtype)
    for stage in stages:
        typer.echo(
            f"{stage.name:<20} {stage.makes}: {stage.parameters / 1e6:,.1f} M parameters, {stage.calls:,} call"
            f"{'s' * (stage.calls != 1)}, {_count_text(stage.tflop)} TFLOP, about {size_text(stage.memory_bytes)}"
        )
    whole = sum(stage.parameters for stage in stages) / 1e6, sum(stage.tflop for stage in stages)
    most = max(stage.memory_bytes for stage in stages)
    typer.echo(
        f"in all {whole[0]:,.1f} M parameters, {_count_text(whole[1])} TFLOP in {str(dtype).removeprefix('torch.')}; "
        f"with one stage on the device at a time (--offload) about {size_text(most)}. Nothing was made."
    )


def _count_text(number: float) -> str:
    return f"{number:,.2f}" if number < 100 else f"{number:,.0f}"


def _run(kind: Any, params: Any, video: Path, out: Path, resume: bool, quiet: bool, given: Mapping[str, Any]) -> None:
    if quiet:
        silence_libraries()
    setup = _setup(given)
    keep_freed_memory()
    with kind.from_pretrained(**setup) as stages, telling_of_journal(), progress_bar(quiet) as on_progress:
        done = stages.run_file(video, out, params, **chosen(ClipRequest, given), on_progress=on_progress, resume=resume)
    _tell(done, out, given)


def _story(params: StoryParams, out: Path, resume: bool, quiet: bool, given: Mapping[str, Any]) -> None:
    if quiet:
        silence_libraries()
    for name in ("preview", "keep_stage", "from_stage"):
        if name in given:
            raise InputError("goes with --method cascade", name=name, value=given[name], remedy="leave it out")
    setup = _setup(given)
    from fairy.runtime.generation.storyteller import Storyteller

    keep_freed_memory()
    with Storyteller.from_pretrained(**setup) as teller, telling_of_journal(), progress_bar(quiet) as on_progress:
        done = teller.generate_file(out, params, **chosen(ClipRequest, given), on_progress=on_progress, resume=resume)
    _tell(done, out, given)


def _one_scene(params: GenerateParams) -> StoryParams:
    """A clip as a story of one scene. Raises InputError for what only a cascade's stages can do."""
    for name in ("fps", "size", "sampler", "stages", "guidance_low", "guidance_high_steps"):
        if getattr(params, name) is not None:
            remedy = "leave it out, or use fairy interpolate and fairy upscale on the result"
            raise InputError("goes with --method cascade", name=name, value=getattr(params, name), remedy=remedy)
    shared = {name: getattr(params, name) for name in options_of(StoryParams) if name in options_of(GenerateParams)}
    return StoryParams([(params.prompt, params.num_frames or USUAL_S)], **shared)


def _setup(given: Mapping[str, Any]) -> dict[str, Any]:
    setup = GeneratorSetup(**chosen(GeneratorSetup, given))
    return {field.name: getattr(setup, field.name) for field in fields(setup)}


def _tell(done: Any, out: Path, given: Mapping[str, Any]) -> None:
    seconds = done.times_ms["total"] / 1e3
    typer.echo(
        f"{out}: {done.num_frames} frame{'s' * (done.num_frames != 1)}, {done.width}×{done.height}, {seconds:.1f} s "
        f"({done.num_frames / seconds:.2f} frames/s), {done.precision} on {done.device}"
    )
    for name, what in (("preview", "first frames"), ("keep_stage", "frames to go on from"), ("report", "report")):
        if name in given:
            typer.echo(f"{given[name]}: {what}")
    for sentence in (*done.lost_workers, *done.notes):
        typer.echo(f"note: {sentence}")
