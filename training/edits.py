"""The edits that the editor with 16 channels learns, each with an exact target (but for the free ones of old).

Kinds: ``look`` changes the whole picture, ``thing`` the things that are named, ``remove``, ``add`` and ``background``
what their names say, ``part`` gives a look to named things or to all but them, ``absent`` names what is not there and,
as ``keep``, changes nothing; ``free`` leaves the target open.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from training.changes import plural, reshaped
from training.instructions import make_edit
from training.looks import LOOKS, MORE_LOOKS, apply_look, apply_tint
from training.named_scenes import COLOURS, colour_name
from training.scenes import Frame, Motion, Scene, Sprite, render
from training.sentences import (
    ADD,
    ALL_BUT,
    BACKGROUND,
    IT,
    KEEP,
    LOOKED_BACKGROUND,
    LOOKED_THINGS,
    PART_LOOKS,
    PLACES,
    RECOLOUR,
    REMOVE,
    RESHAPE,
    SKY,
    THINGS,
    TINTS,
    article,
    finished,
    look_sentence,
)
from training.shapes import ALL_SHAPES, SHAPES, UPRIGHT
from training.surroundings import SKIES, sky
from training.textures import NAMED_COLOURS, Array, Texture, shade

ADDED_RADIUS = 0.16  # of the short side
LEAST_SEEN = 40  # pixels of a thing that must show for it to count as present
HARD_LOOKS = {"poster": 2.0, "neon": 2.0, "blueprint": 2.0, "tint": 2.0}
FREE = ("palette", "texture", "pattern", "place")
BLACK = Texture("plain", 10, 0, (0.04, 0.04, 0.05), (0.0, 0.0, 0.0))


@dataclass(frozen=True, slots=True)
class NamedEdit:
    """An edit of one scene: its words, the scene after it, then a look (or a tint) where the labels say.

    ``where``: labels of the changed scene that get the look, None for the whole picture. ``placed``: only the whole
    picture says where; a part of it does not.
    """

    kind: str
    name: str
    text: str
    scene: Scene
    look: str | None = None
    tint: str | None = None
    where: frozenset[int] | None = None
    placed: bool = False

    def target(self) -> Array:
        """The exact result, float32 [H, W, 3] in [0, 1]."""
        image = render(self.scene).image
        if self.tint is not None:
            return apply_tint(COLOURS[self.tint], image)
        if self.look is None:
            return image
        looked = apply_look(self.look, image)
        if self.where is None:
            return looked
        cover = coverage(self.scene, self.where)
        return np.asarray(cover * looked + (1 - cover) * image, np.float32)


@dataclass(frozen=True, slots=True)
class Named:
    """Things that words pick out: their indices among the sprites, how they are called, whether it is only one."""

    indices: tuple[int, ...]
    phrase: str
    single: bool = False


def coverage(scene: Scene, labels: frozenset[int]) -> Array:
    """How much of each pixel the surfaces of these labels cover, float32 [H, W, 1]."""

    def flat(label: int) -> Texture:
        value = float(label in labels)
        return Texture("plain", 10, 0, (value,) * 3, (value,) * 3)

    sprites = tuple(replace(s, texture=flat(i)) for i, s in enumerate(scene.sprites, start=1))
    return render(replace(scene, background=flat(0), sprites=sprites)).image[..., :1]


def draw_edit(scene: Scene, frame: Frame, rng: np.random.Generator, kind: str | None = None) -> NamedEdit:
    """An edit for the scene, whose picture is ``frame``: of that kind, or of one drawn by the shares."""
    shares = SHARES if scene.sprites else EMPTY_SHARES
    kinds = list(shares)
    weights = np.array(list(shares.values()))
    drawn = kind or str(rng.choice(kinds, p=weights / weights.sum()))
    edit = EDITS[drawn](scene, frame, rng) or look_edit(scene, rng)
    return replace(edit, text=finished(rng, edit.text))


def visible(scene: Scene, frame: Frame) -> list[int]:
    """Indices of the things that can be seen."""
    counts = np.bincount(frame.labels.ravel(), minlength=len(scene.sprites) + 1)[1:]
    return [index for index, count in enumerate(counts) if count >= LEAST_SEEN]


def name_things(scene: Scene, frame: Frame, rng: np.random.Generator) -> Named | None:
    """Draws things of the scene and a phrase that means just them; None where nothing can be seen.

    What cannot be seen is changed with what is called the same: it makes no difference.
    """
    seen = visible(scene, frame)
    if not seen:
        return None
    shape = scene.sprites[int(rng.choice(seen))].shape
    alike = [i for i, sprite in enumerate(scene.sprites) if sprite.shape == shape]
    colours = [colour_name(scene.sprites[i].texture) for i in alike]
    draw = rng.random()
    if draw < 0.5 and None not in colours:
        colour = str(rng.choice([c for i, c in zip(alike, colours, strict=True) if c and i in seen]))
        alike = [i for i, c in zip(alike, colours, strict=True) if c == colour]
        return _named(rng, tuple(alike), shape, colour + " ")
    if draw < 0.56:
        return _by_colour(scene, seen, rng) or _named(rng, tuple(alike), shape)
    return _named(rng, tuple(alike), shape)


def _named(rng: np.random.Generator, indices: tuple[int, ...], shape: str, colour: str = "") -> Named:
    """The phrase for all things of a shape (and colour), in the singular where there is one, sometimes even so not."""
    if len(indices) == 1 and rng.random() < 0.7:
        return Named(indices, f"the {colour}{shape}", single=True)
    every = str(rng.choice(["the", "the", "the", "all", "all the"]))
    return Named(indices, f"{every} {colour}{plural(shape)}")


def _by_colour(scene: Scene, seen: list[int], rng: np.random.Generator) -> Named | None:
    """All things of one colour, or all things."""
    names = [colour_name(sprite.texture) for sprite in scene.sprites]
    things = str(rng.choice(THINGS))
    if None in names or rng.random() < 0.4:
        return Named(tuple(range(len(names))), f"all {things}")
    colour = names[int(rng.choice(seen))]
    return Named(tuple(i for i, name in enumerate(names) if name == colour), f"the {colour} {things}")


def _each(scene: Scene, named: Named, change: Callable[[Sprite], Sprite]) -> Scene:
    sprites = tuple(change(s) if i in named.indices else s for i, s in enumerate(scene.sprites))
    return replace(scene, sprites=sprites)


def _pick(rng: np.random.Generator, choices: tuple[str, ...] | list[str], but: str | None = None) -> str:
    return str(rng.choice([choice for choice in choices if choice != but]))


def _said(template: str, named: Named, **words: str) -> str:
    return template.replace("the {shapes}", named.phrase).format(**words)


def recoloured(sprite: Sprite, colour: str) -> Sprite:
    """The same pattern in a named colour and its shade; black is plain, a silhouette."""
    if colour == "black":
        return replace(sprite, texture=BLACK)
    light = NAMED_COLOURS[colour]
    return replace(sprite, texture=replace(sprite.texture, light=light, dark=shade(light)))


def _recolour(scene: Scene, frame: Frame, rng: np.random.Generator) -> NamedEdit | None:
    named = name_things(scene, frame, rng)
    if named is None:
        return None
    colour = _pick(rng, list(COLOURS))
    templates = RECOLOUR
    if colour == "black" and rng.random() < 0.4:
        templates = ("turn the {shapes} into silhouettes", "black out the {shapes}")
    text = _said(_pick(rng, templates), named, colour=colour)
    return NamedEdit("thing", "recolour", text, _each(scene, named, lambda s: recoloured(s, colour)))


def _reshape(scene: Scene, frame: Frame, rng: np.random.Generator) -> NamedEdit | None:
    """Another shape, sometimes in another colour too."""
    named = name_things(scene, frame, rng)
    if named is None:
        return None
    alone = {scene.sprites[i].shape for i in named.indices}
    shape = _pick(rng, ALL_SHAPES, but=alone.pop() if len(alone) == 1 else None)
    colour = _pick(rng, list(COLOURS)) if rng.random() < 0.15 else None
    called = f"{colour} {shape}" if colour else shape
    others = article(called) if named.single else plural(called)

    def change(sprite: Sprite) -> Sprite:
        fresh = sprite if sprite.shape == shape else reshaped(sprite, shape)
        return recoloured(fresh, colour) if colour else fresh

    return NamedEdit("thing", "reshape", _said(_pick(rng, RESHAPE), named, others=others), _each(scene, named, change))


def _remove(scene: Scene, frame: Frame, rng: np.random.Generator) -> NamedEdit | None:
    named = name_things(scene, frame, rng)
    if named is None:
        return None
    left = tuple(s for i, s in enumerate(scene.sprites) if i not in named.indices)
    return NamedEdit("remove", "remove", _said(_pick(rng, REMOVE), named), replace(scene, sprites=left))


def _add(scene: Scene, frame: Frame, rng: np.random.Generator) -> NamedEdit:
    """A plain upright thing in front of all, of a set size at a named place."""
    shape, colour, place = _pick(rng, ALL_SHAPES), _pick(rng, list(COLOURS)), _pick(rng, list(PLACES))
    across, down = PLACES[place]
    centre = (across * (scene.width - 1), down * (scene.height - 1))
    light = COLOURS[colour]
    texture = Texture("plain", 10, 0, light, shade(light))
    radius = ADDED_RADIUS * min(scene.height, scene.width)
    added = Sprite(shape, texture, centre, radius, UPRIGHT[shape], Motion())
    text = _pick(rng, ADD).replace("a {colour}", article(colour)).format(shape=shape, place=place)
    return NamedEdit("add", "add", text, replace(scene, sprites=(*scene.sprites, added)), placed=True)


def _background(scene: Scene, frame: Frame, rng: np.random.Generator) -> NamedEdit:
    if rng.random() < 0.3:
        name = _pick(rng, list(SKIES))
        text = _pick(rng, SKY).replace("a {sky}", article(name))
        return NamedEdit("background", "sky", text, replace(scene, background=sky(name, scene.width)), placed=True)
    colour = _pick(rng, list(NAMED_COLOURS))
    plain = Texture("plain", 10, 0, NAMED_COLOURS[colour], shade(NAMED_COLOURS[colour]))
    text = _pick(rng, BACKGROUND).format(colour=colour)
    return NamedEdit("background", "colour", text, replace(scene, background=plain))


def _part(scene: Scene, frame: Frame, rng: np.random.Generator) -> NamedEdit | None:
    """A look of the background, of named things, or of all but those."""
    look = _pick(rng, list(PART_LOOKS))
    adjective = _pick(rng, PART_LOOKS[look])
    draw = rng.random()
    if draw < 0.5:
        text = "blur the background" if look == "blur" and rng.random() < 0.4 else _pick(rng, LOOKED_BACKGROUND)
        return NamedEdit("part", "background", text.format(adjective=adjective), scene, look, where=frozenset({0}))
    named = name_things(scene, frame, rng)
    if named is None:
        return None
    labels = frozenset(1 + i for i in named.indices)
    if draw < 0.75:
        text = _said(_pick(rng, LOOKED_THINGS), named, adjective=adjective)
        return NamedEdit("part", "things", text, scene, look, where=labels)
    rest = frozenset(range(1 + len(scene.sprites))) - labels
    if look == "grey" and rng.random() < 0.5:
        return NamedEdit("part", "all but", f"keep only {named.phrase} in colour", scene, look, where=rest)
    return NamedEdit("part", "all but", _said(_pick(rng, ALL_BUT), named, adjective=adjective), scene, look, where=rest)


def _absent(scene: Scene, frame: Frame, rng: np.random.Generator) -> NamedEdit | None:
    """Something is asked of a shape that is not there, or not there in that colour."""
    present = {sprite.shape for sprite in scene.sprites}
    missing = [shape for shape in ALL_SHAPES if shape not in present]
    if present and rng.random() < 0.5:
        shape = _pick(rng, sorted(present))
        colours = {colour_name(s.texture) for s in scene.sprites if s.shape == shape}
        if None in colours:
            return None
        phrase = f"{_pick(rng, [c for c in COLOURS if c not in colours])} {shape}"
    elif missing:
        shape = _pick(rng, missing)
        phrase = f"{_pick(rng, list(COLOURS))} {shape}" if rng.random() < 0.4 else shape
    else:
        return None
    single = bool(rng.random() < 0.5)
    named = Named((), f"the {phrase if single else plural(phrase)}", single)
    other = _pick(rng, ALL_SHAPES, but=shape)
    words = {"colour": _pick(rng, list(COLOURS)), "others": article(other) if single else plural(other)}
    template = _pick(rng, (RECOLOUR, RESHAPE, REMOVE)[int(rng.integers(3))])
    return NamedEdit("absent", "absent", _said(template, named, **words), scene)


def look_edit(scene: Scene, rng: np.random.Generator, name: str | None = None) -> NamedEdit:
    """A global look, the one of that name or one drawn."""
    weights = np.array([HARD_LOOKS.get(look, 1.0) for look in ALL_LOOKS])
    name = name or str(rng.choice(ALL_LOOKS, p=weights / weights.sum()))
    if name == "tint":
        colour = _pick(rng, list(NAMED_COLOURS), but="white")
        return NamedEdit("look", "tint", _pick(rng, TINTS).format(it=_pick(rng, IT), colour=colour), scene, tint=colour)
    return NamedEdit("look", name, look_sentence(rng, name), scene, look=name)


def _keep(scene: Scene, frame: Frame, rng: np.random.Generator) -> NamedEdit:
    return NamedEdit("keep", "keep", _pick(rng, KEEP), scene)


def _free(scene: Scene, frame: Frame, rng: np.random.Generator) -> NamedEdit | None:
    """The old instructions that leave the target open; "texture" names shapes, the six of old."""
    known = replace(scene, sprites=tuple(s for s in scene.sprites if s.shape in SHAPES))
    name = _pick(rng, FREE)
    if name == "texture" and (not known.sprites or known != scene):
        return None
    edit = make_edit(name, scene, rng)
    return NamedEdit("free", name, edit.text, edit.scene)


ALL_LOOKS = (*LOOKS, *MORE_LOOKS, "tint")
EDITS: dict[str, Callable[[Scene, Frame, np.random.Generator], NamedEdit | None]] = {
    "look": lambda scene, frame, rng: look_edit(scene, rng),
    "recolour": _recolour,
    "reshape": _reshape,
    "remove": _remove,
    "add": _add,
    "background": _background,
    "part": _part,
    "absent": _absent,
    "keep": _keep,
    "free": _free,
}
SHARES = {  # how often each is drawn; what takes longer to learn is drawn oftener
    "look": 24.0,
    "recolour": 20.0,
    "reshape": 16.0,
    "remove": 9.0,
    "add": 5.0,
    "background": 6.0,
    "part": 7.0,
    "absent": 8.0,
    "keep": 1.0,
    "free": 2.0,
}
EMPTY_SHARES = {"look": 24.0, "add": 3.0, "absent": 3.0, "keep": 1.0}
