"""Writes the embedded storyteller: ``python -m training.package_phenaki --from DIR --to FOLDER``.

DIR has the checkpoints of training.phenaki_tokenizer and training.phenaki; FOLDER gets what `fairy.runtime.Storyteller`
loads, in float16. A model card that is there stays.
"""

import argparse
from pathlib import Path

from training import phenaki, phenaki_tokenizer
from training.checkpoint import load_average, save_json
from training.package import load_as_float32, replaced
from training.phenaki import TextToCodes
from training.story_clips import FPS

STEPS, GUIDANCE, TEMPERATURE = 24, 3.0, 4.0
"""The paper's settings are 48, 12, 8 and 24, 6, 4 (appendix B.3); guidance by measurement of this model."""


def write_storyteller(folder: Path, checkpoints: Path) -> None:
    """Replaces ``folder`` by the model; the new one is complete before it takes the old one's name."""
    tokenizer = phenaki_tokenizer.load_tokenizer(checkpoints / phenaki_tokenizer.FILE)
    model = TextToCodes()
    load_average(model, checkpoints / phenaki.FILE)
    with replaced(folder) as fresh:
        tokenizer.half().save_pretrained(fresh / "video_tokenizer", safe_serialization=True)
        model.transformer.half().save_pretrained(fresh / "transformer", safe_serialization=True)
        model.text_encoder.half().save_pretrained(fresh / "text_encoder", safe_serialization=True)
        load_as_float32(fresh / "text_encoder" / "config.json")
        model.tokenizer.save_pretrained(fresh / "tokenizer")
        told = {"fps": FPS, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "temperature": TEMPERATURE}
        save_json(fresh / "phenaki.json", told)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and writes the folder."""
    parser = argparse.ArgumentParser(prog="python -m training.package_phenaki", description=__doc__)
    parser.add_argument("--from", dest="checkpoints", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--to", type=Path, required=True, help="the model's folder")
    options = parser.parse_args(arguments)
    write_storyteller(options.to, options.checkpoints)


if __name__ == "__main__":
    main()
