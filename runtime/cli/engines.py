"""`fairy engines list | show | verify | prune`: the command line of the store."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fairy.kernels.errors import InputError, MachineError
from fairy.runtime.editor_setup import EditorSetup
from fairy.runtime.files import user_path

if TYPE_CHECKING:
    import torch

    from fairy.engines.store.store import StoredEngine
    from fairy.export.model import Model

engines = typer.Typer(help="Look at the store of built engines.", rich_markup_mode=None)


ModelOption = Annotated[str | None, typer.Option("--model", help="The model, where it is not where it was.")]
Store = Annotated[Path | None, typer.Option("--store", help="The store's folder [$FAIRY_STORE, else the cache].")]
Decoder = Annotated[
    str | None, typer.Option("--decoder", help="A small decoder: tiny (the model's own), or an AutoencoderTiny.")
]
Loras = Annotated[list[str] | None, typer.Option("--lora", metavar="FILE[:SCALE]", help="Add a LoRA; may be repeated.")]
Config = Annotated[str | None, typer.Option("--config", help="Of a model in one file: where its configuration is.")]
Controls = Annotated[
    list[str] | None,
    typer.Option("--controlnet", metavar="DIR|ID", help="With a ControlNet or T2I adapter; may be repeated."),
]
Adapter = Annotated[str | None, typer.Option("--ip-adapter", metavar="PATH", help="With an IP-Adapter.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Digest = Annotated[str, typer.Argument(help="An engine's digest, or how it begins.")]


@engines.command("list")
def list_engines(store: Store = None, as_json: Json = False) -> None:
    """List the engines in the store."""
    from fairy.engines.store.store import EngineStore, StoredEngine, short_digest

    where = EngineStore(store)
    entries = where.list()
    if as_json:
        rows = [facts_of(entry) if isinstance(entry, StoredEngine) else asdict(entry) for entry in entries]
        typer.echo(json.dumps(rows, indent=2))
        return
    for entry in entries:
        if isinstance(entry, StoredEngine):
            typer.echo(line_of(entry))
        else:
            typer.echo(f"{short_digest(entry.digest)}  broken: {entry.problem}")
    if not entries:
        typer.echo(f"The store {where.root} is empty; `fairy build` fills it.")


@engines.command()
def show(digest: Digest, store: Store = None, as_json: Json = False) -> None:
    """Show what is known of an engine, after comparing all its files with its manifest."""
    from fairy.engines.store.store import EngineStore

    entry = EngineStore(store).verify(digest)
    if as_json:
        typer.echo(json.dumps(entry.manifest.to_json(), indent=2))
        return
    made = entry.manifest.made
    facts = {
        **facts_of(entry),
        "shapes": entry.manifest.key["shapes"] or "any",
        "folder": entry.folder,
        "command": made.command,
        **{f"{phase} time": f"{seconds:.1f} s" for phase, seconds in made.timings_s.items()},
        "largest error": f"{max(made.errors.values(), default=0.0):.2g} (relative L2)",
        **entry.manifest.key["environment"],
        **{f"file {name}": f"{size_text(f.bytes)} {f.sha256}" for name, f in entry.manifest.files.items()},
    }
    for name, value in facts.items():
        typer.echo(f"{name:>20}  {value}")


@engines.command()
def verify(
    digest: Digest,
    store: Store = None,
    model: ModelOption = None,
    decoder: Decoder = None,
    lora: Loras = None,
    config: Config = None,
    controlnet: Controls = None,
    ip_adapter: Adapter = None,
    as_json: Json = False,
) -> None:
    """Check an engine's files, run it beside eager on random inputs, and print how far they are apart."""
    from fairy.engines.store.store import EngineStore
    from fairy.export.lora import base_name

    entry = EngineStore(store).verify(digest)
    setup = model_setup(model or base_name(entry.manifest.made.model), decoder, lora, config, controlnet, ip_adapter)
    comparisons, allowed = _verified(entry, setup)
    if as_json:
        typer.echo(json.dumps({"digest": entry.digest, "allowed": allowed, "outputs": comparisons}, indent=2))
    else:
        typer.echo(line_of(entry))
        for row in comparisons:
            typer.echo(
                f"  {row['output']:<60} {row['shapes']:<22} relative L2 {row['relative']:.2e}  "
                f"largest {row['largest']:.2e}"
            )
    if not all(row["relative"] <= allowed for row in comparisons):
        raise MachineError(
            f"The engine {entry.digest[:12]} is further from eager than the {allowed:g} allowed; "
            "remove it with `fairy engines prune --all` and build it again."
        )
    if not as_json:
        typer.echo(f"All files are as published, and all errors within {allowed:g}.")


@engines.command()
def prune(
    store: Store = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove every engine.")] = False,
    as_json: Json = False,
) -> None:
    """Remove engines that are broken or were built by other versions, and what killed builds left."""
    from fairy.engines.backends import make_builder
    from fairy.engines.build import stale_reason
    from fairy.engines.store.store import EngineStore, short_digest

    def reason(entry: "StoredEngine") -> str | None:
        return "all are removed" if everything else stale_reason(entry, make_builder)

    where = EngineStore(store)
    removed = where.prune(reason)
    if as_json:
        typer.echo(json.dumps(removed, indent=2))
        return
    for digest, why in removed.items():
        typer.echo(f"{short_digest(digest)}  removed: {why}")
    typer.echo(f"{len(removed)} engines removed, {len(where.list())} left in {where.root}.")


def model_setup(
    model: str | None,
    decoder: str | None,
    lora: list[str] | None,
    config: str | None,
    controlnet: list[str] | None,
    ip_adapter: str | None,
) -> EditorSetup:
    """The model that was named, with what is added to it."""
    return EditorSetup(
        model, decoder=decoder, lora=lora or (), config=config, controlnet=controlnet or (), ip_adapter=ip_adapter
    )


def generator_folder(model: str | None) -> Path | None:
    """Where a generator lies that was named; None = that is no generator."""
    from fairy.runtime.generation.cascade import FILE
    from fairy.runtime.models import find_generator

    folder = None if model is None else find_generator(model)
    return folder if folder is not None and (folder / FILE).is_file() else None


def load_model(setup: EditorSetup, precision: "torch.dtype") -> "Model":
    """The editor or generator that a setup names, or the embedded editor, on the CPU."""
    import torch

    from fairy.export.families import load_edit_model
    from fairy.export.lora import Lora
    from fairy.runtime.generation.cascade import Cascade
    from fairy.runtime.generation.networks import cascade_model
    from fairy.runtime.models import find_editor

    model = None if setup.model is None else str(setup.model)
    folder = generator_folder(model)
    if folder is None:
        loras = [Lora(user_path(path), scale) for path, scale in setup.loras]
        more: dict[str, Any] = {"decoder": setup.decoder, "config": setup.config, "loras": loras}
        more |= {"controls": setup.controls, "ip_adapter": setup.ip_adapter and user_path(setup.ip_adapter)}
        return load_edit_model(find_editor(model), dtype=precision, **more)
    for name in ("decoder", "lora", "config", "controlnet", "ip_adapter"):
        if getattr(setup, name):
            raise InputError("is for editors, not for generators", name=name, remedy="leave it out")
    return cascade_model(folder, Cascade.read(folder), torch.device("cpu"), precision, str(model))


def _verified(entry: "StoredEngine", setup: EditorSetup) -> tuple[list[dict[str, Any]], float]:
    """Every output's errors, and the largest relative one that is allowed."""
    import torch

    from fairy.engines.backends import make_builder
    from fairy.engines.engine import EngineSpec
    from fairy.engines.store.key import weights_digest
    from fairy.engines.verify import TOLERANCES, compare

    key = entry.manifest.key
    checkpoint = load_model(setup, getattr(torch, key["precision"]))
    graph = _graph_of(checkpoint, key["graph"])
    if graph is None or weights_digest(checkpoint, checkpoint.network_of(graph)) != key["weights"]:
        raise InputError(
            f"The engine {entry.digest[:12]} was not built from {checkpoint.name} as it is now; name its model with "
            "--model and what is added to it with --decoder, --lora, --config, --controlnet or --ip-adapter, or build "
            "it again."
        )
    device = torch.device(key["device"])
    engine = make_builder(key["backend"]).load(
        EngineSpec(graph, key["backend"], str(device), key["precision"]), entry.folder, device
    )
    try:
        found = compare(engine, checkpoint, entry.manifest.shapes, device)
    finally:
        engine.close()
    return [asdict(comparison) for comparison in found], TOLERANCES[key["precision"]]


def _graph_of(checkpoint: "Model", plain: dict[str, Any]) -> Any:
    """The checkpoint's graph that a manifest speaks of, or None."""
    from fairy.engines.store.key import canonical_digest
    from fairy.export.graphs import LAYER_CHOICES

    for layers in LAYER_CHOICES:
        graph = checkpoint.graphs(layers=layers).get(plain["name"])
        if graph is not None and canonical_digest(asdict(graph)) == canonical_digest(plain):
            return graph
    return None


def facts_of(entry: "StoredEngine") -> dict[str, Any]:
    """What is listed of an engine, as plain values."""
    manifest = entry.manifest
    return {
        "digest": entry.digest,
        "graph": manifest.key["graph"]["name"],
        "backend": manifest.key["backend"],
        "device": manifest.key["device"],
        "precision": manifest.key["precision"],
        "shapes": manifest.key["shapes"],
        "bytes": manifest.num_bytes,
        "created": manifest.created,
        "model": manifest.made.model,
    }


def line_of(entry: "StoredEngine") -> str:
    """An engine in a line."""
    row = facts_of(entry)
    shapes = row["shapes"]
    served = (
        "any shape"
        if shapes is None
        else f"{':'.join(map(str, shapes['width']))}×{':'.join(map(str, shapes['height']))}, "
        f"{':'.join(map(str, shapes['frames']))} frames, {shapes['anchors']} anchors"
    )
    return (
        f"{entry.digest[:12]}  {row['graph']:<14} {row['backend']:<12} {row['device']:<5} {row['precision']:<9} "
        f"{size_text(row['bytes']):>9}  {served}  {row['created'][:16]}  {row['model']}"
    )


def size_text(num_bytes: float) -> str:
    """A number of bytes for people: decimal units, as disks are sold."""
    for unit in ("B", "KB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} GB"
