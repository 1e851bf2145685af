"""One story file for edits and for stories: where prompts begin, how long they last, and what cannot be told."""

from pathlib import Path

import pytest

from fairy.kernels.errors import InputError
from fairy.runtime.plan.story import read_prompts, read_scenes

LENGTHS = """
- {duration: 3, prompt: a red ball}
- {duration: "0:01.5", prompt: it turns blue}
- {duration: 2, prompt: it starts to snow}
"""
FRAMES = """
- {frames: 24, prompt: a red ball}
- {frames: 8, prompt: it turns blue}
"""
STARTS = """
- {frame: 0, prompt: a red ball}
- {time: 2, prompt: it turns blue}
- {time: 5.5, prompt: it starts to snow, duration: 1}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "story.yaml"
    path.write_text(text)
    return path


def test_an_edit_reads_where_prompts_begin(tmp_path: Path) -> None:
    starts = [start for start, _ in read_prompts(written(tmp_path, LENGTHS))]
    assert starts == [0.0, 3.0, 4.5]
    assert [start for start, _ in read_prompts(written(tmp_path, FRAMES))] == [0, 24]
    assert read_prompts(written(tmp_path, STARTS))[1:] == ((2.0, "it turns blue"), (5.5, "it starts to snow"))


def test_a_story_reads_how_long_they_last(tmp_path: Path) -> None:
    assert [length for _, length in read_scenes(written(tmp_path, LENGTHS))] == [3.0, 1.5, 2.0]
    assert read_scenes(written(tmp_path, FRAMES)) == (("a red ball", 24), ("it turns blue", 8))
    assert [length for _, length in read_scenes(written(tmp_path, STARTS))] == [2.0, 3.5, 1.0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- {frame: 0, prompt: x}\n- {frame: 9, prompt: y}", "how long entry 2, 'y', lasts"),
        ("- {frame: 2, prompt: x}\n- {time: 9, prompt: y, duration: 1}", "how long entry 1, 'x', lasts"),
        ("- {frames: 9, prompt: x}\n- {frame: 8, frames: 2, prompt: y}", "how long entry 1, 'x', lasts"),
        ("- {frames: 0, prompt: x}", "how long entry 1, 'x', lasts"),
        ("- {duration: soon, prompt: x}", "entry 1, .*has no frame, time or duration with a prompt"),
        ("- {duration: 2, frames: 3, prompt: x}", "entry 1, .*has no frame, time or duration"),
    ],
)
def test_what_does_not_say_how_long_is_refused(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        read_scenes(written(tmp_path, text))


def test_mixed_counts_do_not_say_where_a_prompt_begins(tmp_path: Path) -> None:
    text = "- {frames: 9, prompt: x}\n- {duration: 2, prompt: y}\n- {duration: 2, prompt: z}"
    with pytest.raises(InputError, match="where entry 3, 'z', begins"):
        read_prompts(written(tmp_path, text))
