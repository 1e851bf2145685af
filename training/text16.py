"""The tokenizer of the editor with 16 channels: the former embedded model's, to which whole words are added.

All numbers of old keep their meaning, so that its token table can be gone on with.
`python -m training.text16 FOLDER` writes it anew for changed sentences.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import CLIPTextModel, CLIPTokenizer

from training import text
from training.sentences import vocabulary
from training.text import LENGTH, build_text_encoder, build_tokenizer

_FOLDER = Path(__file__).parent / "tokenizer16"
END_OF_WORD = "</w>"


def build_tokenizer16() -> CLIPTokenizer:
    """The tokenizer in training/tokenizer16."""
    return _load(_FOLDER)


def extend_tokenizer(folder: Path) -> None:
    """Writes vocab.json and merges.txt: those of old, then what makes each further word one token.

    A further merge comes after all of old, so that words which were whole are not read otherwise. One can take part of
    another word, which therefore is looked at again.
    """
    old = Path(text.__file__).parent / "tokenizer"
    numbers = json.loads((old / "vocab.json").read_text(encoding="utf-8"))
    merges = (old / "merges.txt").read_text(encoding="utf-8").rstrip("\n").split("\n")
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    while words := further_words(tokenizer):
        for word in words:
            _join(tokenizer.tokenize(word), numbers, merges)
        (folder / "vocab.json").write_text(json.dumps(numbers, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8")
        tokenizer = _load(folder)


def _join(pieces: list[str], numbers: dict[str, int], merges: list[str]) -> None:
    """Adds the merges that make one token of a word's pieces, from the left."""
    while len(pieces) > 1:
        merge = f"{pieces[0]} {pieces[1]}"
        if merge not in merges:
            merges.append(merge)
        numbers.setdefault(pieces[0] + pieces[1], len(numbers))
        pieces = [pieces[0] + pieces[1], *pieces[2:]]


def _load(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=LENGTH)


def further_words(tokenizer: CLIPTokenizer) -> list[str]:
    """The words of our sentences that the tokenizer takes to pieces."""
    words = {word.strip("?.,!") for sentence in vocabulary() for word in sentence.lower().split()}
    return sorted(word for word in words if word.isalpha() and len(tokenizer.tokenize(word)) > 1)


def build_text_encoder16(first: CLIPTextModel | None = None) -> CLIPTextModel:
    """The text encoder with the longer token table; its first weights from the former one's, if it is given.

    A further word starts as the mean of the pieces it fell into.
    """
    tokenizer, old_tokenizer = build_tokenizer16(), build_tokenizer()
    encoder = build_text_encoder(tokenizer)
    if first is None:
        return encoder
    tensors = {name: value.float() for name, value in first.state_dict().items()}
    (table_name,) = (name for name in tensors if name.endswith("token_embedding.weight"))
    table_VC = encoder.state_dict()[table_name].clone()
    table_VC[: len(old_tokenizer)] = tensors[table_name]
    for word in further_words(old_tokenizer):
        pieces = old_tokenizer.convert_tokens_to_ids(old_tokenizer.tokenize(word))
        table_VC[tokenizer.convert_tokens_to_ids(word + END_OF_WORD)] = tensors[table_name][torch.tensor(pieces)].mean(
            0
        )
    encoder.load_state_dict(tensors | {table_name: table_VC})
    return encoder


if __name__ == "__main__":
    extend_tokenizer(Path(sys.argv[1]))
