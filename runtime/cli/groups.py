"""The options of `fairy edit` as its help shows them: by the question that they answer."""

from typing import Any

from typer.core import TyperCommand

GROUPS: dict[str, tuple[str, ...]] = {
    "What": ("prompts", "negative_prompt", "seed", "method", "source_prompt", "anchor_images", "style", "lora"),
    "In which structure": (
        "controlnet",
        "control",
        "controlnet_conditioning_scale",
        "control_guidance_start",
        "control_guidance_end",
        "depth_estimator",
    ),
    "Where and when": (
        "mask",
        "mask_from",
        "mask_feather",
        "segmenter",
        "start",
        "end",
        "shots",
        "continue_look",
        "anchors",
        "layers",
    ),
    "How strongly": (
        "strength",
        "guidance_scale",
        "image_guidance_scale",
        "guidance_low",
        "guidance_high_steps",
        "num_inference_steps",
        "sampler",
        "noise",
        "keep_details",
        "delta",
        "update_steps",
        "guidance_end",
    ),
    "Model": (
        "model",
        "config",
        "variant",
        "decoder",
        "linears",
        "bank_dtype",
        "depth",
        "ip_adapter",
        "text_picture",
        "anchor_tokens",
        "anchor_positions",
    ),
    "Input": ("fps", "deinterlace", "hdr", "strict", "max_pixels"),
    "Output": (
        "out",
        "long_side",
        "upscale",
        "size",
        "codec",
        "crf",
        "lossless",
        "pixel_format",
        "bit_depth",
        "then",
        "compare",
        "preview",
        "report",
        "resume",
        "quiet",
    ),
    "Machine": (
        "device",
        "dtype",
        "backend",
        "store",
        "without",
        "bank",
        "gpus",
        "workers",
        "worker_timeout_s",
        "threads",
        "micro_batch",
        "order",
    ),
}


class GroupedCommand(TyperCommand):
    """A command whose help groups its options by `GROUPS`; what stands in none comes last."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options, each group under its title."""
        left = {param.name: record for param in self.get_params(ctx) if (record := param.get_help_record(ctx))}
        arguments = [
            left.pop(p.name) for p in self.get_params(ctx) if p.param_type_name == "argument" and p.name in left
        ]
        groups = {title: [left.pop(name) for name in names if name in left] for title, names in GROUPS.items()}
        for title, records in {"Arguments": arguments, **groups, "Other": list(left.values())}.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
