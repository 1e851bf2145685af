"""An engine's key: it changes exactly when something that can change the engine's bytes changes."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fairy.engines.engine import BuildOptions, Shapes
from fairy.engines.store import key as keys
from fairy.engines.store.key import EngineKey, request_digest, source_fingerprint, weights_digest
from fairy.export.checkpoint import load_checkpoint
from fairy.export.graphs import SelfAttention, text_encoder_spec, unet_spec, vae_decoder_spec, vae_encoder_spec
from tests.conftest import ROOT

# Few values each, so that two keys often agree in most fields and sometimes in all.
names = st.sampled_from(["a", "b"])
ranges = st.sampled_from([(64, 64, 64), (64, 128, 256), (128, 128, 256)])
layers = st.builds(
    SelfAttention,
    name=names,
    level=st.integers(0, 1),
    heads=st.sampled_from([4, 8]),
    channels=st.sampled_from([32, 64]),
    own=st.sampled_from(["frame", "batch"]),
    segments=st.sampled_from([(), ("shared",), ("frame",)]),
    emits=st.booleans(),
)
graphs = st.one_of(
    st.builds(text_encoder_spec, st.sampled_from([16, 77]), st.sampled_from([32, 64])),
    st.builds(vae_encoder_spec, st.just(4)),
    st.builds(vae_decoder_spec, st.just(4)),
    st.builds(lambda layer: unet_spec("unet_frame", (layer,), in_channels=8, out_channels=4, text_channels=32), layers),
)
shapes = st.none() | st.builds(
    Shapes, ranges, ranges, st.just((1, 2, 3)), st.sampled_from([1, 3]), st.sampled_from([1, 3]), st.sampled_from([16])
)
options = st.builds(
    BuildOptions,
    st.sampled_from([None, 1 << 30]),
    st.sampled_from([None, 0, 3]),
    st.sampled_from([None, Path("cache")]),
    st.booleans(),
)
environments = st.dictionaries(names, names).flatmap(lambda d: st.permutations(list(d.items()))).map(tuple)
engine_keys = st.builds(
    EngineKey,
    names,
    graphs,
    st.sampled_from(["onnxruntime", "tensorrt"]),
    st.sampled_from(["cpu", "cuda"]),
    st.sampled_from(["float32", "float16"]),
    shapes,
    options,
    environments,
    names,
)
FIELDS = {
    "weights": names,
    "graph": graphs,
    "backend": st.sampled_from(["onnxruntime", "tensorrt"]),
    "device": st.sampled_from(["cpu", "cuda"]),
    "precision": st.sampled_from(["float32", "float16"]),
    "shapes": shapes,
    "options": options,
    "environment": environments,
    "source": names,
}


def _meaning(key: EngineKey) -> EngineKey:
    """The key without what cannot change an engine's bytes."""
    return replace(key, options=replace(key.options, timing_cache=None), environment=tuple(sorted(key.environment)))


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_the_digest_changes_exactly_when_a_field_does(name: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(engine_keys, FIELDS[name])
    def check(key: EngineKey, value: object) -> None:
        other = replace(key, **{name: value})
        assert (key.digest == other.digest) == (_meaning(key) == _meaning(other))

    check()


def test_every_field_is_checked() -> None:
    assert set(FIELDS) == set(EngineKey.__dataclass_fields__)


@settings(max_examples=60, deadline=None)
@given(engine_keys)
def test_a_request_is_the_key_without_what_was_chosen_when_it_was_built(key: EngineKey) -> None:
    plain = json.loads(json.dumps(key.to_json()))
    assert keys.canonical_digest(plain) == key.digest  # what a manifest holds gives the same digest
    chosen = replace(key, shapes=None, options=BuildOptions(optimization_level=5))
    assert request_digest(plain) == request_digest(chosen.to_json())
    assert request_digest(replace(key, weights="c").to_json()) != request_digest(plain)


@pytest.fixture
def model(checkpoint_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint_folder, tmp_path / "model"))


def _digests(model: Path) -> dict[str, str]:
    checkpoint = load_checkpoint(model)
    return {part: weights_digest(checkpoint, part) for part in ("unet", "vae", "text_encoder")}


def _changed(model: Path, before: dict[str, str]) -> set[str]:
    return {part for part, digest in _digests(model).items() if digest != before[part]}


def test_weights_change_only_the_network_they_belong_to(model: Path) -> None:
    before = _digests(model)
    file = model / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1  # one bit of the last tensor
    file.write_bytes(data)
    assert _changed(model, before) == {"vae"}


def test_a_configuration_changes_only_its_network_and_notes_change_none(model: Path) -> None:
    before = _digests(model)
    config = json.loads((model / "vae" / "config.json").read_text())
    (model / "vae" / "config.json").write_text(json.dumps(config | {"_name_or_path": "elsewhere"}))
    (model / "fairy.json").write_text('{"long_side": 64}')
    (model / "unet" / "diffusion_pytorch_model.safetensors").touch()
    assert _changed(model, before) == set()
    (model / "vae" / "config.json").write_text(json.dumps(config | {"scaling_factor": 0.5}))
    assert _changed(model, before) == {"vae"}


def test_the_precision_a_model_was_loaded_in_is_not_part_of_its_weights(model: Path) -> None:
    import torch

    low = load_checkpoint(model, dtype=torch.bfloat16)
    assert weights_digest(low, "unet") == _digests(model)["unet"]


def test_networks_made_in_code_are_told_apart_by_their_tensors(checkpoint_folder: Path) -> None:
    made = [replace(load_checkpoint(checkpoint_folder), folder=None) for _ in range(3)]
    made[2].unet.conv_in.bias.data[0] += 1e-3
    first, same, other = (weights_digest(checkpoint, "unet") for checkpoint in made)
    assert first == same
    assert first != other
    assert weights_digest(made[2], "vae") == weights_digest(made[0], "vae")


def test_the_source_counts_where_the_backend_uses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("kernels", "export", "engines", "runtime"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("embedded", "__pycache__"))

    def source_file(module: str) -> Path | None:
        path = tmp_path.joinpath(*module.split(".")[1:])
        found = [p for p in (path.with_suffix(".py"), path / "__init__.py") if module.startswith("fairy.")]
        return next((p for p in found if p.is_file()), None)

    monkeypatch.setattr(keys, "_source_file", source_file)

    def fingerprint() -> str:
        source_fingerprint.cache_clear()
        return source_fingerprint("fairy.engines.onnxruntime")

    before = fingerprint()
    for unused in ("runtime/editor.py", "engines/store/store.py", "engines/tensorrt/builder.py", "engines/build.py"):
        (tmp_path / unused).write_text("# changed\n")
        assert fingerprint() == before, unused
    for used in (
        "export/onnx/export.py",
        "export/bases/stable_diffusion.py",
        "kernels/anchor_attention.py",
        "engines/onnxruntime.py",
    ):
        with (tmp_path / used).open("a") as file:
            file.write("# changed\n")
        assert fingerprint() != before, used
        before = fingerprint()
    source_fingerprint.cache_clear()


def test_to_json_forgets_no_field() -> None:
    key = EngineKey("w", vae_encoder_spec(4), "tensorrt", "cuda", "float16", None, BuildOptions(), (), "s")
    assert set(key.to_json()) == set(EngineKey.__dataclass_fields__)
    assert set(key.to_json()["options"]) == set(asdict(BuildOptions())) - {"timing_cache"}
