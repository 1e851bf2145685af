"""The UNet graphs of a method: the model's network with other context, by the same exporter."""

from collections.abc import Iterable

from fairy.export.graphs import GraphSpec, source_layers, with_layers
from fairy.runtime.methods.method import Method
from fairy.runtime.plan.order import check_causal


def graph_name(method: Method, width: int) -> str:
    """What the graph for frames that read `width` others is called; methods that compute the same share it."""
    own = "own_and_" if method.own and width else ""
    return f"unet_{own}{width}_sources" if width else "unet_no_sources"


def method_graphs(unet: GraphSpec, method: Method, layers: str, widths: Iterable[int]) -> dict[int, GraphSpec]:
    """A graph for every number of frames that a frame reads.

    Args:
        unet: the model's denoising network without context.
        layers: "all" or "decoder".
        widths: those numbers; 0 = none, such a frame attends to itself.

    Returns:
        graphs that take the keys and values of each frame's sources, one segment a source, and give its own.
    """
    return {
        width: with_layers(unet, graph_name(method, width), source_layers(unet.layers, layers, width, own=method.own))
        for width in sorted(set(widths))
    }


def graphs_by_name(unet: GraphSpec, method: Method, layers: str, lengths: Iterable[int]) -> dict[str, GraphSpec]:
    """The graphs that a method needs for segments of these lengths, by name.

    Raises:
        InputError: the method lets a frame read later ones.
    """
    widths: set[int] = set()
    for length in lengths:
        sources = method.all_sources(length, (0,))
        check_causal(method.name, sources)
        widths |= {len(read) for read in sources}
    return {graph.name: graph for graph in method_graphs(unet, method, layers, widths).values()}
