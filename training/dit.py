"""The embedded transformer: FLUX.2's blocks, small, as an editor: ``python -m training.dit --out DIR --pairs DIR16``.

It learns on the pairs and the autoencoder of ``training.editor16``. Stages, each resumable: ``text`` (a small Qwen3
learns to say what the embedded editor's text encoder says of instructions), ``transformer`` (flow matching, most of all
from noise alone: every target is exact), ``package`` (DIR/model, a folder of `Flux2KleinPipeline`). Without ``--stage``
they run one after the other.
"""

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer, Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from fairy.runtime.models import embedded_model
from training.checkpoint import Trainee, load_average, save_json
from training.compute import Compute
from training.dit_start import set_to_copy
from training.editor import EditorPlan, change_weights, draw_batch
from training.editor16 import scaling_factor
from training.latents import Pairs
from training.optimisers import adamw
from training.package import load_as_float32, replaced
from training.pairs16 import load_shards
from training.text import token_ids
from training.text16 import build_tokenizer16

STREAM = 71  # of random numbers
STAGES = ("text", "transformer", "package")
TEXT_LAYERS = (9, 18, 27)  # hidden states that the pipeline puts side by side
TEXT_WIDTH, PATCH, LATENTS = 64, 2, 16
AT_NOISE = 1.0  # share of the samples that start from noise alone: every target is exact, so that one step is enough
STEPS = 1
CHAT = "{{ messages[0]['content'] }}"  # an instruction is all that is said
RECOMMENDED = {"long_side": 256, "num_inference_steps": STEPS}


@dataclass(frozen=True, slots=True)
class DitPlan:
    """What the stages do."""

    text_steps: int = 1200
    text_batch: int = 64
    steps: int = 20_000
    learning_rate: float = 1e-3
    pairs: EditorPlan = field(
        default_factory=partial(EditorPlan, crops=((16, 16), (32, 4)), blind=0.0, early=0.0, drop=0.0)
    )


PLAN = DitPlan()


def build_text_encoder(vocabulary: int) -> Qwen3ForCausalLM:
    """28 narrow layers, for the pipeline reads the states after 9, 18 and 27; 1.4 million fresh parameters."""
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=max(TEXT_LAYERS) + 1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=TEXT_WIDTH // 2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    return Qwen3ForCausalLM(config)


def build_transformer() -> Flux2Transformer2DModel:
    """2 blocks of two streams and 6 of one, 192 channels, 5.6 million fresh parameters."""
    return Flux2Transformer2DModel(
        in_channels=LATENTS * PATCH**2,
        num_layers=2,
        num_single_layers=6,
        attention_head_dim=64,
        num_attention_heads=3,
        joint_attention_dim=len(TEXT_LAYERS) * TEXT_WIDTH,
        timestep_guidance_channels=128,
        axes_dims_rope=(16, 16, 16, 16),
        guidance_embeds=False,
    )


class Reader(nn.Module):
    """The text encoder, and what only helps it to learn: a layer that says what the embedded editor's one would say."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(vocabulary)
        self.say = nn.Linear(len(TEXT_LAYERS) * TEXT_WIDTH, width)

    def forward(self, tokens_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
        """[B, L, width]."""
        return torch.as_tensor(self.say(features(self.text_encoder, tokens_BL, mask_BL)))


def features(encoder: Qwen3ForCausalLM, tokens_BL: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Three hidden states side by side, [B, L, C], as the pipeline reads them."""
    told = encoder.model(input_ids=tokens_BL, attention_mask=mask_BL, output_hidden_states=True, use_cache=False)
    return torch.cat([told.hidden_states[k] for k in TEXT_LAYERS], dim=-1)


def text_mask(tokens_BL: torch.Tensor, tokenizer: CLIPTokenizer) -> torch.Tensor:
    """1 up to the first end of the text, which is what texts are filled up with too."""
    ended = (tokens_BL == tokenizer.eos_token_id).long().cumsum(dim=1)
    return (ended - (tokens_BL == tokenizer.eos_token_id).long() == 0).long()


def train_text(options: argparse.Namespace, pairs: Pairs, plan: DitPlan) -> Trainee:
    """The text encoder alone, on the instructions of all pairs."""
    torch.manual_seed(options.seed)
    tokenizer, wanted = build_tokenizer16(), embedded_model() / "text_encoder"
    teacher = CLIPTextModel.from_pretrained(wanted, dtype=torch.float32).eval().requires_grad_(False)
    reader = Reader(len(tokenizer), teacher.config.hidden_size)
    texts = torch.unique(pairs.tokens, dim=0)

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng((STREAM, options.seed, step))
        tokens = texts[torch.from_numpy(rng.integers(len(texts), size=plan.text_batch))]
        mask = text_mask(tokens, tokenizer)
        said = reader(tokens, mask)
        with torch.no_grad():
            told = teacher(tokens).last_hidden_state
        error = F.mse_loss(said, told, reduction="none").mean(dim=2)
        return (error * mask).sum() / mask.sum() / told[mask.bool()].var()

    trainee = Trainee.start(reader, adamw(reader, 1e-3))
    path = options.out / "text.safetensors"
    return trainee.run(path, loss_at, steps=plan.text_steps, peak=2e-3, deadline=options.deadline, save_every=200)


@dataclass(frozen=True, slots=True)
class Norm:
    """Mean and deviation of every channel of packed latents, [1, 64, 1, 1]; not scaled."""

    mean: torch.Tensor
    deviation: torch.Tensor

    @classmethod
    def of(cls, latents_NCHW: torch.Tensor) -> "Norm":
        """Of some pictures."""
        packed = F.pixel_unshuffle(latents_NCHW.float(), PATCH)
        return cls(*(getattr(packed, name)(dim=(0, 2, 3), keepdim=True) for name in ("mean", "std")))

    def pack(self, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """[B, 16, h, w] to [B, 64, h/2, w/2], of zero mean and unit variance."""
        return (F.pixel_unshuffle(latents_BCHW, PATCH) - self.mean) / self.deviation


def tokens_of(packed_BCHW: torch.Tensor) -> torch.Tensor:
    """[B, C, h, w] to [B, h·w, C]."""
    return packed_BCHW.flatten(2).transpose(1, 2)


def positions(text: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the text's tokens [L, 4] and of target and source [2·h·w, 4], as the pipeline numbers them."""
    words = torch.zeros(text, 4, dtype=torch.long)
    words[:, 3] = torch.arange(text)
    pictures = [torch.cartesian_prod(torch.tensor([t]), *map(torch.arange, (height, width, 1))) for t in (0, 10)]
    return words, torch.cat(pictures)


def train_transformer(options: argparse.Namespace, pairs: Pairs, plan: DitPlan) -> Trainee:
    """The transformer alone, on texts that were read once."""
    torch.manual_seed(options.seed)
    tokenizer, compute = build_tokenizer16(), Compute.best()
    model, norm = build_transformer(), Norm.of(pairs.target[:4000])
    set_to_copy(model)
    texts, place = torch.unique(pairs.tokens, dim=0, return_inverse=True)
    read = _read(options.out, texts, tokenizer)
    pairs = replace(pairs, tokens=place[:, None])  # numbers of texts
    drawing = replace(plan.pairs, steps=plan.steps)

    def loss_at(step: int) -> torch.Tensor:
        batch = draw_batch(pairs, drawing, torch.zeros(1, dtype=torch.long), options.seed, step)
        rng = np.random.default_rng((STREAM, options.seed, step, 1))
        count = len(batch.target)
        times = torch.from_numpy(np.where(rng.random(count) < AT_NOISE, 1.0, rng.random(count)).astype(np.float32))
        weights = F.avg_pool2d(change_weights(batch, pairs.scaling_factor, drawing.changed_weight), PATCH)
        target, image = norm.pack(batch.target / pairs.scaling_factor), norm.pack(batch.image)
        noise = torch.from_numpy(rng.standard_normal(target.shape, dtype=np.float32))
        t = times[:, None, None, None]
        words, places = positions(read.shape[1], *target.shape[2:])
        with compute.autocast():
            told = model(
                hidden_states=torch.cat([tokens_of((1 - t) * target + t * noise), tokens_of(image)], dim=1),
                encoder_hidden_states=read[batch.tokens[:, 0]].float(),
                timestep=times,
                img_ids=places,
                txt_ids=words,
                return_dict=False,
            )[0]
        error = (told[:, : target[0, 0].numel()].float() - tokens_of(noise - target)).square()
        return (tokens_of(weights) * error).mean()

    trainee = Trainee.start(model, adamw(model, plan.learning_rate))
    path = options.out / "transformer.safetensors"
    return trainee.run(
        path, loss_at, steps=plan.steps, peak=plan.learning_rate, deadline=options.deadline, save_every=100
    )


@torch.no_grad()
def _read(out: Path, texts_NL: torch.Tensor, tokenizer: CLIPTokenizer) -> torch.Tensor:
    """The features of all texts, [N, L, C], in 16 bit."""
    encoder = load_text_encoder(out, len(tokenizer))
    parts = [features(encoder, part, text_mask(part, tokenizer)).half() for part in texts_NL.split(256)]
    return torch.cat(parts)


def load_text_encoder(out: Path, vocabulary: int) -> Qwen3ForCausalLM:
    """The averaged weights of the first stage."""
    width = json.loads((embedded_model() / "text_encoder" / "config.json").read_text())["hidden_size"]
    reader = Reader(vocabulary, width)
    load_average(reader, out / "text.safetensors")
    return reader.text_encoder.eval()


def build_vae(norm: Norm) -> AutoencoderKLFlux2:
    """The embedded editor's autoencoder in FLUX.2's class, with the norm of its packed latents."""
    old = AutoencoderKL.from_pretrained(embedded_model() / "vae", torch_dtype=torch.float32)
    names = ("block_out_channels", "down_block_types", "up_block_types", "layers_per_block", "norm_num_groups")
    shared = {name: old.config[name] for name in (*names, "mid_block_add_attention")}
    vae = AutoencoderKLFlux2(latent_channels=LATENTS, **shared)
    weights = vae.state_dict() | old.state_dict()
    weights |= {"bn.running_mean": norm.mean.flatten(), "bn.running_var": norm.deviation.flatten().square()}
    vae.load_state_dict(weights)
    return vae.eval()


def package(options: argparse.Namespace, pairs: Pairs) -> None:
    """DIR/model, in float16."""
    numbers = build_tokenizer16()
    transformer = build_transformer()
    load_average(transformer, options.out / "transformer.safetensors")
    tokenizer = Qwen2Tokenizer(
        tokenizer_object=numbers.backend_tokenizer,
        pad_token=numbers.pad_token,
        eos_token=numbers.eos_token,
        model_max_length=numbers.model_max_length,
        padding_side="right",
    )
    tokenizer.chat_template = CHAT
    schedule = FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)
    encoder = load_text_encoder(options.out, len(numbers))
    parts = (schedule, build_vae(Norm.of(pairs.target[:4000])).half(), encoder.half(), tokenizer, transformer.half())
    with replaced(options.out / "model") as fresh:
        Flux2KleinPipeline(*parts, is_distilled=True).save_pretrained(fresh, safe_serialization=True)
        save_json(fresh / "fairy.json", RECOMMENDED)
        load_as_float32(fresh / "text_encoder" / "config.json")


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and runs the stages it asks for."""
    parser = argparse.ArgumentParser(prog="python -m training.dit", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints and model")
    parser.add_argument("--pairs", type=Path, required=True, help="folder of training.editor16 with encoded pairs")
    parser.add_argument("--stage", choices=STAGES, help="only this one")
    parser.add_argument("--minutes", type=float, default=600.0, help="at most, for each stage")
    parser.add_argument("--steps", type=int, help="of the transformer, instead of the plan's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    plan = replace(PLAN, steps=options.steps or PLAN.steps)
    pairs = load_shards(options.pairs, partial(token_ids, build_tokenizer16()), scaling_factor(options.pairs))
    for stage in (options.stage,) if options.stage else STAGES:
        options.deadline = time.monotonic() + 60 * options.minutes
        if stage == "package":
            package(options, pairs)
        else:
            {"text": train_text, "transformer": train_transformer}[stage](options, pairs, plan)


if __name__ == "__main__":
    main()
