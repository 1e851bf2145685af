"""One edit, from entry to kernel, top to bottom.

An edit opens the video, encodes the text, encodes the anchors and denoises them together, which fills the anchor bank,
and then takes the other frames in micro-batches: read, encode, denoise against the bank, decode, hand out.
`Editor._parts` and `InProcess.edit` (or `workers/dispatch.py`) are that sentence in code; `plan/plan.py` decides,
`denoise/` computes, `record/` tells.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor

from fairy.engines.backends import check_backend, make_backend
from fairy.engines.engine import Backend
from fairy.engines.store.store import EngineStore
from fairy.export.families import half_precision, load_edit_model
from fairy.export.lora import Lora
from fairy.export.model import EditModel
from fairy.export.steps import FP8_LINEARS
from fairy.kernels.errors import FairyError, InputError
from fairy.runtime.denoise.networks import Networks
from fairy.runtime.device import (
    cpu_threads,
    measured_micro_batch,
    resolve_device,
    resolve_dtype,
    worker_devices,
)
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.executor import Executor, InProcess
from fairy.runtime.files import check_names, check_outputs, only_writer_of, user_path, write_picture
from fairy.runtime.inputs.encoded import EncodedPictures
from fairy.runtime.inputs.frames import Frames, VideoInput
from fairy.runtime.inputs.reads import read_frames_of
from fairy.runtime.inputs.segmenter import Segmenter, load_segmenter
from fairy.runtime.methods import find_method
from fairy.runtime.methods.fits import check_processes, check_resume
from fairy.runtime.models import find_editor
from fairy.runtime.overlap import Behind, ahead
from fairy.runtime.plan.batches import default_micro_batch
from fairy.runtime.plan.controls import COMPUTED
from fairy.runtime.plan.file_request import DEFAULT_CRF, FileRequest
from fairy.runtime.plan.identity import identity_of
from fairy.runtime.plan.memory import check_memory, check_weights
from fairy.runtime.plan.params import DEFAULT_FEATHER, EditParams
from fairy.runtime.plan.plan import Plan, plan_edit, resolved_for
from fairy.runtime.record.edit_report import (
    EditPart,
    EditReport,
    EditResult,
    contact_sheet,
    open_writer,
    side_by_side,
    side_by_side_width,
)
from fairy.runtime.record.journal import Journal, folders_of_other_containers, journal_folder
from fairy.runtime.record.progress import Monitor, Progress
from fairy.runtime.record.reporting import report_of
from fairy.runtime.record.run import Run
from fairy.runtime.video import Clock
from fairy.runtime.video.codecs import Encoding
from fairy.runtime.workers.pool import PoolOptions, WorkerPool

if TYPE_CHECKING:
    from fairy.runtime.generation.follow_up import FollowUp

OnProgress = Callable[[Progress], object]

_QUEUED = 2
"""Parts that are read before they are needed, and that wait to be written."""


class Editor:
    """Edits videos with one loaded model. One job at a time; a second call waits for the first to end.

    Make one with `from_pretrained`; use it as a context manager, or call `close` when done.
    """

    def __init__(
        self,
        checkpoint: EditModel,
        backend: Backend,
        *,
        device: torch.device,
        dtype: torch.dtype,
        threads: int = 1,
        executor: Executor | None = None,
        store: EngineStore | None = None,
        bank: str = "device",
        segmenter: Segmenter | None = None,
    ) -> None:
        """`executor`: what computes; None = the backend's engines in this process. `store`: where they come from.
        `bank`: as in `from_pretrained`. `segmenter`: what finds what is named in words."""
        self._networks = Networks(checkpoint, backend, device, bank_on_host=bank == "host")
        self._executor = executor or InProcess(self._networks, threads)
        self._store = store
        self._segmenter = segmenter
        self._dtype = dtype
        self._threads = threads
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._closed = False
        self._streams: WeakSet[Generator[EditPart, None, None]] = WeakSet()

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        torch_dtype: str | torch.dtype | None = None,
        backend: str = "auto",
        store: str | Path | None = None,
        without: Sequence[str] = (),
        gpus: int = 1,
        workers: int = 1,
        worker_timeout_s: float = 600.0,
        threads: int = 1,
        bank: str = "device",
        decoder: str | Path | None = None,
        lora: Sequence[str | tuple[str | Path, float]] = (),
        controlnet: Sequence[str | tuple[str | Path, float]] = (),
        segmenter: str | Path | None = None,
        ip_adapter: str | Path | None = None,
        depth_estimator: str | Path | None = None,
        linears: str | None = None,
        revision: str | None = None,
        variant: str | None = None,
        config: str | Path | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> "Editor":
        """Load a model of the InstructPix2Pix type, or one that sees depth.

        Args:
            model: a folder in diffusers' format, a hub id or a .safetensors file with all of a model's weights; None =
                the model that ships with fairy, "embedded-dit" the transformer that does.
            config: for a model in one file a folder in diffusers' format, whose configuration, tokenizer and schedule
                are used.
            device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:1".
            dtype: "auto" (on CUDA the model's own 16 bit, on the CPU float32), "float32", "float16" or "bfloat16";
                `torch_dtype` is another name for it.
            backend: "auto" (the best one whose engines are in the store, else "cuda-graphs" on a GPU and "eager" on the
                CPU), "eager", "cuda-graphs", "onnxruntime", "tensorrt" or "compiled".
            store: the folder of built engines; None = `$FAIRY_STORE`, else the user's cache folder.
            without: steps of the backends "compiled", which then compiles on the spot, and "cuda-graphs" to leave out,
                such as "fused-qkv".
            gpus, workers: how many processes compute, each on a GPU of its own or all on the CPU; 1 = this process. The
                result is the same for any number.
            worker_timeout_s: seconds that a worker may take for one denoising step, or to load the model, before it is
                given up.
            threads: CPU threads of the computation; results may differ in rounding between numbers of threads.
            bank: where the anchors' keys and values are kept: "device", or "host" memory, from where they are fetched a
                step ahead, for cards that cannot hold all steps. Several workers then compute the anchors each.
            decoder: approximate; "tiny" = the model's own small decoder, or a folder or hub id of an `AutoencoderTiny`.
            lora: files of LoRA (.safetensors, as kohya's trainers, diffusers or PEFT write them), whose changes are
                added to the weights: "style.safetensors", "style.safetensors:0.6" or ("style.safetensors", 0.6).
            controlnet: ControlNets and T2I adapters that guide edits, in diffusers' format: "folder", "owner/name:0.6"
                or ("folder", 0.6). What each sees is `EditParams.control`.
            segmenter: a folder or hub id of a CLIPSeg, for `EditParams.mask_from`.
            ip_adapter: a file of an IP-Adapter's weights, or its folder, with the folder image_encoder beside them, for
                `EditParams.style`.
            depth_estimator: a folder or hub id of a DPT for `control="depth"`; None = the model's own, if it has one.
            linears: approximate; "float8" computes the UNet's feed-forward and attention projections in 8 bit, with the
                backends "cuda-graphs" and "compiled"; a CPU simulates it.
            revision, variant, token, cache_dir, local_files_only: as in diffusers, for models from the hub.

        Raises:
            InputError: the model cannot be loaded, or an option is not possible on this machine.
        """
        check_names(cache_dir=cache_dir)
        names = {"device": str(device), "dtype": str(torch_dtype or dtype).removeprefix("torch."), "backend": backend}
        numbers = {"gpus": gpus, "workers": workers, "threads": threads, "worker_timeout_s": worker_timeout_s}
        more: dict[str, Any] = {"store": store, "without": without, "bank": bank, "decoder": decoder}
        more |= {"linears": linears, "lora": lora, "controlnet": controlnet, "depth_estimator": depth_estimator}
        more |= {"ip_adapter": ip_adapter, "segmenter": segmenter}
        setup = EditorSetup(model, variant=variant, config=config, **names, **numbers, **more)  # type: ignore[arg-type]  # it checks them all
        chosen_device = resolve_device(device)
        source = find_editor(model)
        hub: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
        chosen_dtype = resolve_dtype(setup.dtype, chosen_device)
        if setup.dtype == "auto" and chosen_device.type == "cuda":
            chosen_dtype = half_precision(source, revision=revision, **hub)
        devices = worker_devices(chosen_device, gpus, workers)
        also = () if linears is None else (FP8_LINEARS,)
        check_backend(backend, chosen_device, setup.without, also)
        loras = tuple(Lora(user_path(path), scale) for path, scale in setup.loras)
        checkpoint = load_edit_model(
            source,
            dtype=chosen_dtype,
            device=chosen_device if len(devices) == 1 else "meta",  # the weights are the workers' then
            revision=revision,
            variant=variant,
            **hub,
            decoder=decoder,
            config=config,
            loras=loras,
            controls=setup.controls,
            depth_estimator=depth_estimator,
            ip_adapter=None if ip_adapter is None else user_path(ip_adapter),
            before_loading=partial(check_weights, devices[0]),
        )
        found = None
        if segmenter is not None:
            found = load_segmenter(segmenter, devices[0], hub)
        engines = EngineStore(store)
        if len(devices) == 1:
            with cpu_threads(threads):  # some engines take the number of threads when they are loaded
                made = make_backend(
                    backend, checkpoint, chosen_device, chosen_dtype, store=engines, without=setup.without, also=also
                )
            executor = None
        else:
            assert checkpoint.folder is not None
            folder, left_out = checkpoint.folder.absolute(), setup.without
            file = checkpoint.single_file
            where: dict[str, Any] = {"loras": loras, "config": None if file is None else folder}
            where |= {"controls": tuple((c.folder.absolute(), c.scale) for c in checkpoint.controls if c.folder)}
            adapter = checkpoint.ip_adapter
            where |= {"depth_estimator": checkpoint.depth_estimator_folder}
            where |= {"ip_adapter": None if adapter is None else adapter.file.absolute()}
            what = (
                folder if file is None else file.absolute(),
                checkpoint.variant,
                devices,
                chosen_dtype,
                backend,
                engines.root,
            )
            tiny = checkpoint.tiny_decoder_folder
            wait_s = worker_timeout_s
            made = executor = WorkerPool(
                PoolOptions(*what, threads, left_out, bank, tiny, wait_s, wait_s, also=also, **where)
            )
        how = {"device": chosen_device, "dtype": chosen_dtype, "threads": threads, "store": engines, "bank": bank}
        return cls(checkpoint, made, executor=executor, segmenter=found, **how)  # type: ignore[arg-type]

    def edit(
        self,
        video: VideoInput,
        params: EditParams,
        *,
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
        latents: Tensor | None = None,
        preview: str | Path | None = None,
    ) -> EditResult:
        """Edit a video and return all of it.

        Args:
            video: a file, a folder of images, or uint8 frames [T, H, W, 3].
            params: what to do.
            on_progress: called with `Progress` at every step of every micro-batch.
            cancel: set it to stop the job at its next step.
            latents: the initial noise, [c, h, w] for all frames or [T, c, h, w], at the padded size and of unit
                variance (before the sampler's `init_noise_sigma`, as in diffusers).
            preview: a PNG or JPEG file for the edited anchors, written before the other frames are computed.

        Raises:
            InputError, MachineError, NumericalError, Cancelled: each says in a sentence what to do.
        """
        with self._one_edit():
            run = self._open(video, params, Monitor(on_progress, cancel), latents, _preview_path(preview, video))
            frames = np.empty((run.plan.source.num_frames, *run.plan.result_size, 3), np.uint8)
            for part, _ in self._parts(run, _preview_path(preview, video)):
                frames[part.start : part.start + len(part.frames)] = part.frames
            return EditResult(frames, self._report(run), run.plan.source)

    def stream(
        self,
        video: VideoInput,
        params: EditParams,
        *,
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
        latents: Tensor | None = None,
        preview: str | Path | None = None,
    ) -> Iterator[EditPart]:
        """Edit a video and hand out its frames in order, part by part, in flat memory; arguments as in `edit`.

        The Editor is busy from the first part taken until the last one was, or until the iterator is closed.
        """
        monitor = Monitor(on_progress, cancel)
        parts = self._stream(video, params, monitor, latents, _preview_path(preview, video))
        self._streams.add(parts)
        return parts

    def _stream(
        self, video: VideoInput, params: EditParams, monitor: Monitor, latents: Tensor | None, preview: Path | None
    ) -> Generator[EditPart, None, None]:
        with self._one_edit():
            run = self._open(video, params, monitor, latents, preview)
            for part, _ in self._parts(run, preview):
                yield part
                self._owner = threading.get_ident()  # whoever took the last part drives the job now

    def edit_file(
        self,
        video: str | Path,
        out: str | Path,
        params: EditParams,
        *,
        compare: str | Path | None = None,
        preview: str | Path | None = None,
        report: str | Path | None = None,
        fps: float | Fraction | None = None,
        crf: int = DEFAULT_CRF,
        then: str | Sequence[str] | None = None,
        codec: str | None = None,
        lossless: bool = False,
        pixel_format: str | None = None,
        bit_depth: int = 8,
        on_progress: OnProgress | None = None,
        cancel: threading.Event | None = None,
        latents: Tensor | None = None,
        resume: bool = False,
    ) -> EditReport:
        """Edit a file of any length into another, in flat memory; `out` appears only when it is whole.

        Args:
            video: a video file or a folder of images.
            out: the file to write; its ending says the container.
            compare: a second file, with source and result side by side.
            report: a JSON file for the report.
            fps: frames per second, where the source is a folder of images.
            crf: constant rate factor of the encoder, 0 (best) to 51.
            then: "upscale", "interpolate", or both in an order: what the edited frames become before they are written,
                by the embedded generator's stages. The report tells of the edit, and a note of what was written.
            codec: "h264", "hevc", "av1", "vp9", "prores" or "ffv1"; "png" makes `out` a new folder of pictures; None =
                the container's usual one.
            lossless: every edited frame can be read back bit for bit.
            pixel_format: FFmpeg's name of the samples, such as "yuv444p"; None = what players show.
            bit_depth: 8, or 10 for programs that want it; the edit itself has 8.
            resume: go on from the micro-batches that an interrupted edit of the same into the same file, or one of the
                same name with another ending, had finished; it left them in `out` + ".job", which is removed when
                `out` is there.
            params, preview, on_progress, cancel, latents: as in `edit`.
        """
        request = FileRequest.checked(
            video,
            out,
            compare=compare,
            preview=preview,
            report=report,
            fps=fps,
            crf=crf,
            then=then,
            codec=codec,
            lossless=lossless,
            pixel_format=pixel_format,
            bit_depth=bit_depth,
        )
        check_resume(params, resume)
        with self._one_edit(), only_writer_of(request.out, request.compare, request.preview, request.report):
            run = self._open(request.video, params, Monitor(on_progress, cancel), latents, request.preview)
            others = folders_of_other_containers(request.out)
            journal = Journal(
                journal_folder(request.out), self._identity(run.plan), spare_bytes=run.plan.likely_bytes, others=others
            )
            run = replace(run, journal=journal)
            with journal.kept_unless_done():
                self._write(run, request, resume=resume)
            done = self._report(run)
        if request.report is not None:
            done.save(request.report)
        return done

    def _identity(self, plan: Plan) -> dict[str, object]:
        networks, name = self._networks, self._networks.backend.name
        engines = [] if self._store is None or name == "eager" else [e.digest for e in self._store.engines()]
        engines += networks.backend.steps
        segmenter = None if self._segmenter is None or plan.params.mask_from is None else self._segmenter.digest
        told: dict[str, Any] = {"segmenter": segmenter, "backend": name, "engines": engines}
        told |= {"device": networks.device, "threads": self._threads}
        return identity_of(plan, checkpoint=networks.checkpoint, **told)

    def _write(self, run: Run, request: FileRequest, *, resume: bool) -> None:
        """Edit into files. They get their names when all is done, the edited video first."""
        height, width = run.plan.result_size
        make = partial(open_writer, source=run.plan.source, fps=request.fps, cancel=run.monitor.cancel)
        usual, asked = Encoding(crf=request.crf), request.encoding
        follow_up = self._follow_up(run, request)
        with ExitStack() as stack:
            beside = None
            if request.compare is not None:
                beside = stack.enter_context(
                    make(request.compare, height=height, width=side_by_side_width(width), encoding=usual)
                )
            if follow_up is None:
                writer = stack.enter_context(make(request.out, height=height, width=width, encoding=asked, alpha=True))
            else:
                high, wide = follow_up.size
                clock = follow_up.clock
                how: dict[str, Any] = {"clock": clock, "encoding": asked, "alpha": True}
                writer = stack.enter_context(make(request.out, height=high, width=wide, **how))

            def write(item: tuple[EditPart, list[Frames]]) -> None:
                part, pictures = item
                with run.monitor.timed("write"):
                    if follow_up is None:
                        writer.write(part.frames)
                    if beside is not None:
                        beside.write(side_by_side(self._networks.source_like_result(run, pictures), part.frames))

            if run.journal is not None:
                run.journal.begin(resume=resume)
            with Behind(write, _QUEUED) as behind, closing(self._parts(run, request.preview)) as parts:
                if follow_up is None:
                    for item in parts:
                        behind.put(item)
                else:
                    for frame in follow_up.frames(_frames_of(parts, behind)):
                        writer.write(frame)
            with run.monitor.timed("write"):
                stack.close()
            run.tally.notes += [*writer.notes, *([] if follow_up is None else [follow_up.sentence])]

    def _follow_up(self, run: Run, request: FileRequest) -> "FollowUp | None":
        """The stages that the edited frames go through before they are written."""
        if not request.then:
            return None
        from fairy.runtime.generation.follow_up import FollowUp

        source, plan = run.plan.source, run.plan
        return FollowUp(
            request.then,
            num_frames=source.num_frames,
            size=plan.result_size,
            clock=source.clock or Clock.constant(source.num_frames, request.fps or 1),
            cuts=[segment.start for segment in plan.segments if segment.start > 0],
            monitor=run.monitor,
            threads=self._threads,
            device=self._networks.device,
            dtype=self._dtype,
        )

    def keep_encoded(self, most_bytes: int = 256 << 20) -> None:
        """From now on encode each picture once, for several edits of one video; 0 = no longer.

        The results are the same to the byte. Several workers encode for themselves and keep nothing.

        Args:
            most_bytes: of ordinary memory for the last pictures' latents; a frame of 512x384 has 48 kB in float32.
        """
        self._networks.encoded = EncodedPictures(most_bytes) if most_bytes else None

    def resolve(self, params: EditParams) -> EditParams:
        """The parameters as an edit by this model uses them: for None what it recommends, else our default."""
        return resolved_for(self._networks.checkpoint, params)

    def warm_up(self, height: int, width: int, params: EditParams | None = None) -> None:
        """Run a one-step edit of gray frames of this size, so that the first real one pays for no first use."""
        asked = params or EditParams("warm up")
        count = asked.anchors if isinstance(asked.anchors, int) else len(asked.anchors or range(3))
        workers = self._executor.workers
        others = 1 if workers == 1 else 2 * workers * (asked.micro_batch or default_micro_batch(count))
        frames = np.full((count + others, height, width, 3), 127, np.uint8)
        if find_method(asked.method).anchors == "chosen":
            asked = replace(asked, anchors=count)
        other: dict[str, Any] = {
            "mask": None,
            "mask_from": None,
            "mask_feather": DEFAULT_FEATHER,
            "anchor_images": (),
        }  # these are of another video
        if any(seen not in COMPUTED for seen in asked.seen):
            other |= {"control": (), "controlnet_conditioning_scale": 0.0}
        whole = replace(asked, start=None, end=None, prompts=None, shots="off", **other)
        self.edit(frames, replace(whole, num_inference_steps=1))

    def close(self) -> None:
        """Give back the model's memory; ends streams that were left open and waits for a running job.

        The Editor cannot be used afterwards; closing it again does nothing.
        """
        for stream in list(self._streams):
            with suppress(ValueError):  # it is running in another thread, whose job is waited for below
                stream.close()
        if self._owner == threading.get_ident():
            raise FairyError("An Editor cannot be closed from within its own job; cancel the job first.")
        with self._lock:
            if not self._closed:
                self._closed = True
                self._executor.close()
                del self._networks

    def __enter__(self) -> "Editor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(
        self, video: VideoInput, params: EditParams, monitor: Monitor, latents: Tensor | None, preview: Path | None
    ) -> Run:
        """Look at the input and decide everything that follows; whatever is impossible is refused here."""
        if not isinstance(params, EditParams):
            raise InputError(f"params must be EditParams, not {type(params).__name__}.")
        if preview is not None and (params.anchors in (0, ()) or find_method(params.method).anchors == "none"):
            why = "anchors = 0" if params.anchors in (0, ()) else f"the method {params.method}"
            raise InputError(f"A preview shows the edited anchors, but {why} asks for none; choose at least one.")
        check_processes(params, self._executor.workers)
        self._executor.take_usage()  # of a job that failed
        networks, workers = self._networks, self._executor.workers
        batch = measured_micro_batch(networks.device)
        plan = plan_edit(
            networks.checkpoint,
            video,
            params,
            monitor,
            latents=latents,
            precision=self._dtype,
            usual_batch=batch,
            segmenter=self._segmenter,
        )
        check_memory(networks.checkpoint, plan, networks.device, bank_on_host=networks.bank_on_host, workers=workers)
        return Run.of(plan, monitor)

    def _parts(self, run: Run, preview: Path | None) -> Generator[tuple[EditPart, list[Frames]], None, None]:
        """The edit itself. Yields parts in order, each with its source frames as they were read."""
        previews: list[list[Frames]] = []
        with closing(ahead(read_frames_of(run), _QUEUED)) as reads, closing(self._executor.edit(run, reads)) as edits:
            for segment in run.plan.segments:
                anchor_pictures, anchor_frames = next(edits)
                if preview is not None:
                    anchors = np.stack([anchor_frames[a] for a in segment.anchors])
                    previews.append(list(self._within_mask(run, anchor_pictures, anchors)))
                    write_picture(preview, contact_sheet(previews))
                for part, (pictures, edited) in zip(segment.parts, edits, strict=False):
                    edited = {**anchor_frames, **edited}
                    frames = np.stack([edited[i] for i in range(part.start, part.stop)])
                    frames = self._within_mask(run, pictures, frames)
                    run.tally.sha256.update(frames.tobytes())
                    run.note_first_frame()
                    clock = run.plan.source.clock
                    pts = None if clock is None else tuple(map(int, clock.pts[part.start : part.stop]))
                    yield EditPart(part.start, frames, pts), pictures
            if run.plan.mask is not None and not run.tally.masked:
                run.tally.notes.append("The mask is empty: nothing was edited, and all frames are the source's.")

    def _within_mask(self, run: Run, pictures: list[Frames], frames: Frames) -> Frames:
        """Edited frames [n, H, W, 3] where their mask says so, else their source frames."""
        if run.plan.mask is None:
            return frames
        run.tally.masked = run.tally.masked or any(picture[..., 3].any() for picture in pictures)
        return self._networks.within_masks(run, pictures, frames)

    def _report(self, run: Run) -> EditReport:
        return report_of(
            run,
            checkpoint=self._networks.checkpoint,
            backend=self._networks.backend.name,
            usage=self._executor.take_usage(),
            device=self._networks.device,
            precision=self._dtype,
            threads=self._threads,
        )

    @contextmanager
    def _one_edit(self) -> Iterator[None]:
        me = threading.get_ident()
        if self._owner == me:
            raise FairyError("This Editor is in the middle of a stream in the same thread; finish or close that first.")
        with self._lock:
            if self._closed:
                raise FairyError("This Editor was closed; make another one.")
            self._owner = me
            try:
                yield
            finally:
                self._owner = None


def _frames_of(
    parts: Iterator[tuple[EditPart, list[Frames]]], behind: Behind[tuple[EditPart, list[Frames]]]
) -> Iterator[Frames]:
    """The edited frames one by one, after each part was handed to what is written beside them."""
    for item in parts:
        behind.put(item)
        yield from item[0].frames


def _preview_path(preview: str | Path | None, video: VideoInput) -> Path | None:
    if preview is None:
        return None
    path = user_path(preview)
    check_outputs({"preview": path}, user_path(video) if isinstance(video, str | Path) else None)
    return path
