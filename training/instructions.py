"""The instructions: what they are called in words, and what they do to a scene.

Three kinds. ``global`` changes the whole picture and ``local`` one kind of object, each with an exact target;
``free`` leaves the target open (new palette, new texture, new place), so that a model has to choose.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from training import changes
from training.changes import Changed, plural
from training.looks import LOOKS, apply_look
from training.scenes import Frame, Scene, render
from training.shapes import SHAPES
from training.textures import NAMED_COLOURS, Array
from training.wordings import LOOK_WORDINGS


@dataclass(frozen=True, slots=True)
class Edit:
    """One instruction for one scene: its words, the scene after it, and the look it ends in (None: unchanged)."""

    name: str
    kind: str
    text: str
    scene: Scene
    look: str | None = None

    def target(self, time: float = 0.0) -> Array:
        """The edited picture at ``time``, float32 [H, W, 3] in [0, 1]."""
        image = render(self.scene, time).image
        return image if self.look is None else apply_look(self.look, image)


@dataclass(frozen=True, slots=True)
class Instruction:
    """A family of edits; the wordings may have {shapes}, {others} and {colour} in them.

    ``share``: how often it is drawn in training. What takes longer to learn is drawn oftener.
    """

    kind: str
    wordings: tuple[str, ...]
    change: Callable[[Scene, np.random.Generator], Changed]
    look: str | None = None
    share: float = 1.0


def make_edit(name: str, scene: Scene, rng: np.random.Generator, *, wording: int | None = None) -> Edit:
    """The instruction ``name`` for ``scene``, its open choices and (unless given) its wording drawn from ``rng``."""
    instruction = INSTRUCTIONS[name]
    changed, words = instruction.change(scene, rng)
    drawn = int(rng.integers(len(instruction.wordings)))
    template = instruction.wordings[drawn if wording is None else wording]
    return Edit(name, instruction.kind, template.format(**words), changed, instruction.look)


def edit_mask(source: Frame, target: Array) -> np.ndarray:
    """Where an edit changes the picture, bool [H, W]."""
    return np.asarray(np.abs(source.image - target).max(axis=2) > 0.02)


HARD_LOOKS = {"poster": 2.0, "neon": 2.0, "blueprint": 2.0}  # their shares of the drawn edits; of the others 1

INSTRUCTIONS: dict[str, Instruction] = {
    **{
        name: Instruction("global", LOOK_WORDINGS[name], changes.keep, look=name, share=HARD_LOOKS.get(name, 1.0))
        for name in LOOKS
    },
    "recolour": Instruction("local", (
        "make the {shapes} {colour}", "turn the {shapes} {colour}", "paint the {shapes} {colour}",
        "change the colour of the {shapes} to {colour}", "color the {shapes} {colour}"), changes.recolour, share=6),
    "reshape": Instruction("local", (
        "replace the {shapes} with {others}", "turn the {shapes} into {others}",
        "change the {shapes} into {others}", "swap the {shapes} for {others}"), changes.reshape, share=14),
    "background": Instruction("local", (
        "make the background {colour}", "put it on a {colour} background",
        "replace the background with plain {colour}", "paint the background {colour}"),
        changes.flatten_background, share=2),
    "black": Instruction("local", (
        "make the {shapes} black", "turn the {shapes} into silhouettes", "paint the {shapes} black",
        "black out the {shapes}"), changes.blacken, share=4),
    "palette": Instruction("free", (
        "give it a new palette", "use random colours", "change all the colours", "recolour everything at random",
        "make it in crazy colors"), changes.repaint_all, share=1.5),
    "texture": Instruction("free", (
        "put a new texture on the {shapes}", "give the {shapes} a new pattern", "cover the {shapes} in a new texture",
        "decorate the {shapes}"), changes.retexture, share=1.5),
    "pattern": Instruction("free", (
        "give everything a new pattern", "change all the textures", "cover everything in a new texture",
        "decorate everything"), changes.repattern_all, share=1.5),
    "place": Instruction("free", (
        "put it somewhere else", "change the background", "give it a new background",
        "move it to another place"), changes.replace_background, share=1.5),
}  # fmt: skip


def corpus() -> Iterator[str]:
    """Every sentence the model can meet in training, each once."""
    for instruction in INSTRUCTIONS.values():
        for wording in instruction.wordings:
            for shape in SHAPES:
                for word in (*NAMED_COLOURS, *SHAPES):
                    yield wording.format(shapes=plural(shape), others=plural(word), colour=word)
