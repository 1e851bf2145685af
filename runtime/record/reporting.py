"""The report of an edit that is done."""

from collections.abc import Sequence

import torch

from fairy.engines.engine import Usage
from fairy.export.model import EditModel
from fairy.export.steps import STEPS
from fairy.runtime.plan.identity import told_of, told_of_style
from fairy.runtime.record.edit_report import EditReport, installed_versions
from fairy.runtime.record.run import Run


def report_of(
    run: Run,
    *,
    checkpoint: EditModel,
    backend: str,
    usage: Usage,
    device: torch.device,
    precision: torch.dtype,
    threads: int,
) -> EditReport:
    """The report; `precision` is the one that was asked for, `usage` what the backend ran."""
    height, width = run.plan.result_size
    times = {**run.monitor.times_ms, "total": run.monitor.elapsed_ms()}
    used = run.plan.params.to_json() | {"anchors": run.plan.anchors, "micro_batch": run.plan.micro_batch}
    return EditReport(
        source=run.plan.source.describe(),
        params=used | {"latents": "given" if run.plan.initial is not None else "from the seed"},
        model=checkpoint.name,
        backend=backend,
        device=str(device),
        precision=str(precision).removeprefix("torch."),
        threads=threads,
        workers=run.tally.workers,
        lost_workers=tuple(run.tally.lost_workers),
        redone_batches=run.tally.redone_batches,
        resumed_batches=0 if run.journal is None else run.journal.resumed,
        anchors=run.plan.anchors,
        micro_batch=run.plan.micro_batch,
        segments=tuple(
            {"start": s.start, "stop": s.stop, "prompt": s.prompt, "anchors": s.anchors, "strengths": s.strengths}
            for s in run.plan.segments
        ),
        num_frames=run.plan.source.num_frames,
        width=width,
        height=height,
        times_ms={stage: round(ms, 1) for stage, ms in times.items()},
        bank_bytes=run.tally.bank_bytes,
        fallbacks=tuple(dict.fromkeys([*run.tally.fallbacks, *usage.fallbacks])),
        notes=tuple(
            dict.fromkeys(
                [
                    *_approximations(checkpoint, usage.steps, device),
                    *run.tally.notes,
                    *(run.journal.notes if run.journal is not None else ()),
                ]
            )
        ),
        engine_digests=usage.digests,
        steps=usage.steps,
        frames_sha256=run.tally.sha256.hexdigest(),
        versions=installed_versions(),
        controls=(*(told_of(use, checkpoint) for use in run.plan.controls), *told_of_style(run.plan, checkpoint)),
    )


def _approximations(checkpoint: EditModel, ran: Sequence[str], device: torch.device) -> list[str]:
    """What was asked of the networks that changes results, in sentences."""
    folder = checkpoint.tiny_decoder_folder
    notes = [] if folder is None else [f"approximate: pictures were made by the small decoder {folder}."]
    simulated = "; the CPU simulates it" if device.type == "cpu" else ""
    return notes + [f"approximate: {s.why}{simulated}." for s in STEPS if s.name in ran and not s.exact]
