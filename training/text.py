"""The text side: a CLIP tokenizer of our own instructions, and a small CLIP text encoder.

`python -m training.text FOLDER` trains a tokenizer for changed instructions; all networks must be trained anew with it.
"""

import sys
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.instructions import corpus

WIDTH = 96
LENGTH = 24  # tokens
_FOLDER = Path(__file__).parent / "tokenizer"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def build_tokenizer() -> CLIPTokenizer:
    """The tokenizer in training/tokenizer: a byte-level BPE vocabulary of our instructions.

    It is kept, not trained anew: the library numbers entries that are equally frequent in another order each time, and
    networks and cached latents only mean something with the numbers they were trained with.
    """
    files = (str(_FOLDER / name) for name in ("vocab.json", "merges.txt"))
    return CLIPTokenizer(*files, model_max_length=LENGTH)


def train_tokenizer(folder: Path, vocabulary: int = 900, texts: list[str] | None = None) -> None:
    """Writes vocab.json and merges.txt of the present instructions, or of ``texts``; other words fall into pieces."""
    trained = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    trained.normalizer = normalizers.Lowercase()
    trained.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trained.decoder = decoders.ByteLevel()
    trained.train_from_iterator(corpus() if texts is None else texts, _trainer(vocabulary))
    folder.mkdir(parents=True, exist_ok=True)
    trained.model.save(str(folder))


def _trainer(vocabulary: int) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_START, _END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of 96 channels, fresh weights."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=6,
        max_position_embeddings=LENGTH,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Padded token numbers [len(texts), 24]."""
    batch = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    return torch.as_tensor(batch.input_ids)


if __name__ == "__main__":
    train_tokenizer(Path(sys.argv[1]))
