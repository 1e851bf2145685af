"""The one command: ``python -m training.train --out DIR`` makes the former embedded model from nothing.

Stages: autoencoder, editor, equivariant, decoder (which may run any time after the first), tiny_decoder (any time after
the editor; it learns from the last decoder there is). Each stops at its planned steps or after ``--minutes`` and goes
on with ``--resume``; checkpoints, cached latents and ``record.json`` lie in DIR, the packaged models in DIR/model and
DIR/model_equivariant. The editor's two stages can share their batches among processes, one for each core or GPU:
``torchrun --nproc-per-node 2 -m training.train --out DIR --stage editor``.
"""

import argparse
import hashlib
import platform
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch

from training.autoencoder import AutoencoderPlan, DecoderPlan, build_autoencoder, train_autoencoder, train_decoder
from training.checkpoint import Trainee, load_average, read_json, read_notes, save_json
from training.compute import Compute
from training.editor import EditorPlan, train_editor
from training.latents import Pairs, PairsPlan, load_pairs
from training.package import write_from_checkpoints
from training.tiny_decoder import train_tiny_decoder

STAGES = ("autoencoder", "editor", "equivariant", "decoder", "tiny_decoder")
NEEDS = {"editor": "autoencoder", "equivariant": "editor", "decoder": "autoencoder", "tiny_decoder": "editor"}
Plan = AutoencoderPlan | DecoderPlan | EditorPlan
QUICK_LOOKS = ("sepia", "negative", "night", "pencil", "snow", "watercolour", "thermal", "grey")


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs the stages it asks for."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    stages = STAGES if options.stage == "all" else (options.stage,)
    if not options.resume and any(_checkpoint(options.out, stage).exists() for stage in stages):
        raise SystemExit(f"{options.out} already holds a checkpoint: add --resume, or name another --out")
    if options.start_from and options.stage != "editor":
        raise SystemExit(f"--start-from goes with --stage editor, not with {options.stage}")
    if options.start_from and not options.start_from.is_file():
        raise SystemExit(
            f"there is no checkpoint {options.start_from}: name the editor.safetensors of an earlier training"
        )
    needed = NEEDS.get(stages[0])
    if needed and not _checkpoint(options.out, needed).exists():
        raise SystemExit(f"{options.out} holds no {needed}: run --stage {needed} first")
    if Compute.best().processes > 1 and options.stage not in ("editor", "equivariant"):
        raise SystemExit(f"stage {options.stage} takes one process: name --stage editor or --stage equivariant")
    for stage in stages:
        _run(stage, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints, record and model")
    parser.add_argument("--stage", choices=(*STAGES, "all"), default="all")
    parser.add_argument("--minutes", type=float, default=100.0, help="at most, for each stage")
    parser.add_argument("--steps", type=int, help="of the stage, instead of the plan's")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoints in --out")
    parser.add_argument(
        "--start-from", type=Path, help="checkpoint with the editor's first weights, instead of fresh ones"
    )
    parser.add_argument("--quick", action="store_true", help="eight looks, few scenes, fewer steps: a trial")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    return parser


def _run(stage: str, options: argparse.Namespace) -> None:
    """One stage, its record, and the packaged models once there is an editor."""
    started = time.monotonic()
    plan, trainee = _train(stage, options, started + 60 * options.minutes)
    if not trainee.writes:
        return
    _record(options, stage, asdict(plan), trainee, started)
    _package(options.out)


def _train(stage: str, options: argparse.Namespace, deadline: float) -> tuple[Plan, Trainee]:
    """The stage's plan, and what came of it."""
    compute, seed, out = Compute.best(), options.seed, options.out
    if stage == "autoencoder":
        plan = autoencoder_plan(options.quick, options.steps)
        return plan, train_autoencoder(plan, out, compute, seed=seed, deadline=deadline)
    if stage == "decoder":
        last_plan = decoder_plan(options.quick, options.steps)
        return last_plan, train_decoder(last_plan, out, compute, seed=seed, deadline=deadline)
    if stage == "tiny_decoder":
        tiny_plan = tiny_decoder_plan(options.quick, options.steps)
        teacher, factor = _autoencoder(out), _scaling_factor(out)
        return tiny_plan, train_tiny_decoder(
            tiny_plan, out, compute, autoencoder=teacher, scaling_factor=factor, seed=seed, deadline=deadline
        )
    edit_plan = editor_plan(stage, options.quick, options.steps)
    pairs, path = _pairs(edit_plan, stage, options), _checkpoint(out, stage)
    start = _checkpoint(out, "editor") if stage == "equivariant" else options.start_from
    return edit_plan, train_editor(edit_plan, pairs, path, compute, seed=seed, deadline=deadline, start=start)


def _package(out: Path) -> None:
    """Both models, as far as they are trained, with the decoders of the last stages where there are any."""
    for stage, folder in (("editor", "model"), ("equivariant", "model_equivariant")):
        if _checkpoint(out, stage).exists():
            parts = (_autoencoder(out), _checkpoint(out, stage), _scaling_factor(out))
            write_from_checkpoints(out / folder, *parts, tiny_decoder=_checkpoint(out, "tiny_decoder"))


def _autoencoder(out: Path) -> Path:
    """The autoencoder's checkpoint with the decoder that was trained last."""
    vae = _checkpoint(out, "decoder")
    return vae if vae.exists() else _checkpoint(out, "autoencoder")


def _scaling_factor(out: Path) -> float:
    """What makes the latents that the editor learned from have unit variance."""
    return float(read_notes(_latents(out, "editor"))["scaling_factor"])


def autoencoder_plan(quick: bool, steps: int | None) -> AutoencoderPlan:
    """The full plan, or one of eight minutes."""
    plan = AutoencoderPlan(steps=1500, pictures=600) if quick else AutoencoderPlan()
    return replace(plan, steps=steps or plan.steps)


def decoder_plan(quick: bool, steps: int | None) -> DecoderPlan:
    """The full plan, or one of two minutes."""
    plan = DecoderPlan(steps=1000, pictures=600) if quick else DecoderPlan()
    return replace(plan, steps=steps or plan.steps)


def tiny_decoder_plan(quick: bool, steps: int | None) -> DecoderPlan:
    """The full plan, or one of two minutes."""
    plan = DecoderPlan(steps=1000, pictures=600) if quick else DecoderPlan(steps=2_500)
    return replace(plan, steps=steps or plan.steps)


def editor_plan(stage: str, quick: bool, steps: int | None) -> EditorPlan:
    """The full plan of a stage, or one of ten minutes; the equivariant stage is shorter and gentler."""
    plan = EditorPlan()
    if quick:
        plan = replace(plan, steps=900, crops=((32, 4),), pairs=PairsPlan(scenes=150, edits=8, names=QUICK_LOOKS))
    if stage == "equivariant":
        plan = replace(plan, steps=plan.steps // 16, learning_rate=plan.learning_rate / 4)
        plan = replace(plan, pairs=replace(plan.pairs, affine=True, scenes=plan.pairs.scenes // 4))
    return replace(plan, steps=steps or plan.steps)


def _pairs(plan: EditorPlan, stage: str, options: argparse.Namespace) -> Pairs:
    """The stage's pairs; of several processes the first one encodes them."""
    compute, checkpoint = Compute.best(), _checkpoint(options.out, "autoencoder")
    if compute.rank > 0:
        compute.wait()
    model = build_autoencoder().to(compute.device, memory_format=torch.channels_last)
    load_average(model, checkpoint)
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    like = _latents(options.out, "editor") if stage == "equivariant" else None
    pairs = load_pairs(_latents(options.out, stage), plan.pairs, model, options.seed, digest, scaled_like=like)
    if compute.rank == 0:
        compute.wait()
    return pairs


def _latents(out: Path, stage: str) -> Path:
    return out / f"latents_{stage}.safetensors"


def _checkpoint(out: Path, stage: str) -> Path:
    return out / f"{stage}.safetensors"


def _record(options: argparse.Namespace, stage: str, plan: dict[str, object], trainee: Trainee, started: float) -> None:
    """Adds this run of a stage to DIR/record.json."""
    path = options.out / "record.json"
    record = read_json(path) if path.exists() else {"runs": []}
    packages = ("torch", "diffusers", "transformers", "tokenizers", "safetensors", "numpy", "scikit-image")
    record["versions"] = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    record["runs"].append(
        {
            "stage": stage,
            "seed": options.seed,
            "threads": options.threads,
            "processes": Compute.best().processes,
            "started_from": options.start_from and hashlib.sha256(options.start_from.read_bytes()).hexdigest(),
            "plan": plan,
            "steps_done": trainee.step,
            "seconds": round(time.monotonic() - started, 1),
            "loss_every_100_steps": [round(loss, 6) for loss in trainee.losses],
        }
    )
    save_json(path, record)


if __name__ == "__main__":
    main()
