"""The longer vocabulary: old numbers stay, further words are whole, and start as what their pieces meant."""

from pathlib import Path

import torch

from training.instructions import corpus
from training.sentences import vocabulary
from training.text import build_text_encoder, build_tokenizer, token_ids
from training.text16 import build_text_encoder16, build_tokenizer16, extend_tokenizer, further_words


def test_sentences_of_old_keep_their_numbers() -> None:
    sentences = sorted(set(corpus()))
    assert token_ids(build_tokenizer(), sentences).equal(token_ids(build_tokenizer16(), sentences))


def test_every_word_is_one_token() -> None:
    assert "hexagons" in further_words(build_tokenizer())
    assert further_words(build_tokenizer16()) == []


def test_the_kept_files_are_those_of_the_present_sentences(tmp_path: Path) -> None:
    extend_tokenizer(tmp_path)
    kept = build_tokenizer16()
    from transformers import CLIPTokenizer

    fresh = CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=24)
    sentences = sorted(set(vocabulary()))
    assert token_ids(kept, sentences).equal(token_ids(fresh, sentences))


def test_first_weights_mean_the_same_for_old_sentences() -> None:
    torch.manual_seed(0)
    old = build_text_encoder(build_tokenizer()).eval()
    new = build_text_encoder16(old).eval()
    tokens = token_ids(build_tokenizer(), ["make it sepia", "make the circles red"])
    with torch.no_grad():
        torch.testing.assert_close(new(tokens).last_hidden_state, old(tokens).last_hidden_state)
    table = new.get_input_embeddings().weight
    pieces = build_tokenizer().convert_tokens_to_ids(build_tokenizer().tokenize("hexagon"))
    number = build_tokenizer16().convert_tokens_to_ids("hexagon</w>")
    torch.testing.assert_close(table[number], table[torch.tensor(pieces)].mean(0))
