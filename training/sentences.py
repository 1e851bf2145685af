"""How the editor with 16 channels is asked: frames, nouns and adjectives that are put together at random.

The wordings of ``training.wordings`` and ``training.instructions`` stay among them.
"""

import re
from collections.abc import Iterator

import numpy as np

from training.changes import plural
from training.instructions import INSTRUCTIONS
from training.named_scenes import COLOURS
from training.shapes import ALL_SHAPES
from training.surroundings import SKIES
from training.wordings import LOOK_WORDINGS

IT = ("it", "it", "it", "it", "the picture", "the photo", "the image", "the scene", "the video", "this", "this photo")
THINGS = ("things", "shapes", "objects")

LOOK_NOUNS: dict[str, tuple[str, ...]] = {
    "sepia": ("a sepia photograph", "an old sepia photo", "a vintage photo", "an antique photograph"),
    "negative": ("a negative", "a photographic negative", "a film negative"),
    "night": ("a night scene", "a moonlit night", "a picture taken at night"),
    "pencil": ("a pencil sketch", "a pencil drawing", "a sketch", "a black and white sketch", "a drawing"),
    "poster": ("a comic", "a poster", "pop art", "a screen print", "a comic book", "a cartoon"),
    "sunset": ("a sunset", "a sunset scene", "a picture taken at sunset"),
    "snow": ("a snowy scene", "a winter scene", "a snowy landscape", "a snowy winter day"),
    "grey": ("a black and white photo", "a monochrome picture", "a greyscale image", "a grayscale image"),
    "watercolour": ("a watercolour", "a watercolor", "a watercolour painting", "a watercolor painting"),
    "neon": ("a neon sign", "neon lights", "glowing neon lines"),
    "fog": ("a foggy day", "a misty morning", "a foggy scene", "a misty day"),
    "underwater": ("an underwater scene", "an underwater photo", "the bottom of the sea"),
    "thermal": ("a thermal image", "a heat map", "an infrared image", "thermal vision"),
    "blueprint": ("a blueprint", "a technical drawing on blue paper", "a blueprint drawing"),
}
LOOK_ADJECTIVES: dict[str, tuple[str, ...]] = {
    "sepia": ("sepia", "old and brown", "vintage"),
    "negative": ("inverted", "negative"),
    "night": ("like night", "like midnight"),
    "pencil": ("sketched", "drawn with a pencil"),
    "poster": ("posterized", "like a comic"),
    "sunset": ("warm", "golden", "warm and orange"),
    "snow": ("snowy", "wintry", "covered with snow", "like winter"),
    "grey": ("black and white", "grey", "gray", "monochrome", "colourless"),
    "watercolour": ("painted in watercolours", "like a watercolor"),
    "neon": ("neon", "glow like neon"),
    "fog": ("foggy", "misty", "hazy"),
    "underwater": ("underwater", "like the sea"),
    "thermal": ("thermal", "infrared"),
    "blueprint": ("like a blueprint",),
    "bright": ("brighter", "bright", "lighter", "much brighter"),
    "dark": ("darker", "dark", "dim", "much darker"),
    "vivid": ("more colourful", "vivid", "more saturated", "colorful"),
    "blur": ("blurry", "blurred", "out of focus", "soft"),
}
LOOK_SENTENCES: dict[str, tuple[str, ...]] = {
    **LOOK_WORDINGS,
    "snow": (*LOOK_WORDINGS["snow"], "let it snow", "add snow", "snow everywhere", "put snow on everything"),
    "night": (*LOOK_WORDINGS["night"], "let it be night", "change day to night", "at night"),
    "fog": (*LOOK_WORDINGS["fog"], "let there be fog", "fog everywhere"),
    "sunset": (*LOOK_WORDINGS["sunset"], "let the sun set", "add evening light"),
    "bright": ("brighten it", "turn up the light", "add light"),
    "dark": ("darken it", "turn down the light", "dim the light"),
    "vivid": ("make the colours stronger", "boost the colours", "increase the saturation"),
    "blur": ("blur it", "put it out of focus", "make everything blurry"),
}
NOUN_FRAMES = (
    "make {it} {noun}",
    "turn {it} into {noun}",
    "make {it} look like {noun}",
    "as {noun}",
    "show {it} as {noun}",
    "convert {it} to {noun}",
    "change {it} into {noun}",
    "{it} should look like {noun}",
    "{noun}",
)
ADJECTIVE_FRAMES = (
    "make {it} {adjective}",
    "turn {it} {adjective}",
    "make {it} look {adjective}",
    "{it} should be {adjective}",
)
TINTS = (
    "make {it} {colour}",
    "tint {it} {colour}",
    "turn {it} {colour}",
    "make everything {colour}",
    "colour {it} {colour}",
)

RECOLOUR = (
    *INSTRUCTIONS["recolour"].wordings,
    "colour the {shapes} {colour}",
    "the {shapes} should be {colour}",
    "I want the {shapes} to be {colour}",
    "give the {shapes} a {colour} colour",
    "let the {shapes} be {colour}",
    "dye the {shapes} {colour}",
    "change the {shapes} to {colour}",
)
RESHAPE = (
    *INSTRUCTIONS["reshape"].wordings,
    "make the {shapes} into {others}",
    "exchange the {shapes} for {others}",
    "put {others} in place of the {shapes}",
    "instead of the {shapes} show {others}",
)
REMOVE = (
    "remove the {shapes}",
    "delete the {shapes}",
    "erase the {shapes}",
    "take away the {shapes}",
    "take the {shapes} out of the picture",
    "get rid of the {shapes}",
    "make the {shapes} disappear",
    "hide the {shapes}",
    "the {shapes} should disappear",
)
PLACES: dict[str, tuple[float, float]] = {  # where, as shares of width and height
    "": (0.5, 0.5),
    "in the middle": (0.5, 0.5),
    "in the center": (0.5, 0.5),
    "in the top left corner": (0.2, 0.2),
    "in the top right corner": (0.8, 0.2),
    "in the bottom left corner": (0.2, 0.8),
    "in the bottom right corner": (0.8, 0.8),
    "at the top": (0.5, 0.2),
    "at the bottom": (0.5, 0.8),
    "on the left": (0.2, 0.5),
    "on the right": (0.8, 0.5),
}
ADD = (
    "add a {colour} {shape} {place}",
    "put a {colour} {shape} {place}",
    "draw a {colour} {shape} {place}",
    "place a {colour} {shape} {place}",
    "insert a {colour} {shape} {place}",
    "there should be a {colour} {shape} {place}",
)
BACKGROUND = (
    *INSTRUCTIONS["background"].wordings,
    "change the background to {colour}",
    "turn the background {colour}",
    "the background should be {colour}",
    "make the backdrop {colour}",
    "put it in front of a {colour} wall",
)
SKY = (
    "make the background a {sky}",
    "put it in front of a {sky}",
    "replace the background with a {sky}",
    "show a {sky} behind it",
    "change the background to a {sky}",
)
LOOKED_BACKGROUND = (
    "make the background {adjective}",
    "turn the background {adjective}",
    "the background should be {adjective}",
    "make only the background {adjective}",
)
LOOKED_THINGS = ("make the {shapes} {adjective}", "turn the {shapes} {adjective}", "the {shapes} should be {adjective}")
ALL_BUT = (
    "make everything {adjective} except the {shapes}",
    "make everything but the {shapes} {adjective}",
    "turn everything {adjective} except the {shapes}",
)
KEEP = ("leave it as it is", "change nothing", "do nothing", "keep it", "keep the picture", "no changes")
PART_LOOKS = {
    "grey": ("black and white", "grey", "gray"),
    **{n: LOOK_ADJECTIVES[n] for n in ("bright", "dark", "blur", "negative")},
}


def look_sentence(rng: np.random.Generator, look: str) -> str:
    """A sentence that asks for a global look: a wording of its own, or one put together."""
    draw = rng.random()
    if draw < 0.4 or look not in LOOK_ADJECTIVES:
        return _pick(rng, LOOK_SENTENCES[look])
    if draw < 0.75 and look in LOOK_NOUNS:
        return _pick(rng, NOUN_FRAMES).format(it=_pick(rng, IT), noun=_pick(rng, LOOK_NOUNS[look]))
    return _pick(rng, ADJECTIVE_FRAMES).format(it=_pick(rng, IT), adjective=_pick(rng, LOOK_ADJECTIVES[look]))


def finished(rng: np.random.Generator, sentence: str) -> str:
    """The sentence as people end or begin it."""
    sentence = " ".join(sentence.split())
    draw = rng.random()
    if draw < 0.04:
        return "please " + sentence
    if draw < 0.07:
        return sentence + " please"
    return sentence + "." if draw < 0.12 else sentence


def asks_for(sentence: str) -> str | None:
    """Whether the sentence adds, reshapes or removes things; None for all else."""
    return next((kind for kind, said in _ASKED.items() if said.search(sentence)), None)


def article(noun: str) -> str:
    """The noun with "a" or "an" before it."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def vocabulary() -> Iterator[str]:
    """Sentences that hold every word the editor can meet, for the tokenizer."""
    frames = (*RECOLOUR, *RESHAPE, *REMOVE, *ADD, *BACKGROUND, *SKY, *LOOKED_BACKGROUND, *LOOKED_THINGS, *ALL_BUT)
    for frame in (*frames, *NOUN_FRAMES, *ADJECTIVE_FRAMES, *TINTS):
        yield re.sub(r"{\w+}", " ", frame)
    yield from (*KEEP, *IT, *THINGS, *PLACES, *SKIES, *COLOURS)
    for phrases in (*LOOK_NOUNS.values(), *LOOK_ADJECTIVES.values(), *LOOK_SENTENCES.values()):
        yield from phrases
    yield from (f"{shape} {plural(shape)}" for shape in ALL_SHAPES)
    yield "please keep only all the an a"


_SHAPE = "(" + "|".join(name for shape in ALL_SHAPES for name in (shape, plural(shape))) + ")"
_ASKED = {
    "add": re.compile(rf"^(please )?(add|put|draw|place|insert|there should be) an? \w+ {_SHAPE}\b"),
    "remove": re.compile(r"\b(remove|delete|erase|take|rid|disappear|hide)\b"),
    "reshape": re.compile(rf"\b(into|with|for|put|instead)\b.*\b{_SHAPE}\b"),
}
