"""The files that a network is exported to.

Each network defines its own, see ``src.models.graphs``; this module contains no network-specific
code.
"""

from __future__ import annotations

from torch import nn

from src.errors import UserError
from src.models.graphs import Graph

__all__ = ["Graph", "graphs_of"]


def graphs_of(network: nn.Module) -> list[Graph]:
    """Graphs of a network.

    Args:
        network: A network with its weights; changed to evaluation mode, CPU and float32.

    Raises:
        UserError: If the network cannot be exported.
    """
    export_graphs = getattr(network, "export_graphs", None)
    if export_graphs is None:
        raise UserError(
            f"{type(network).__name__} cannot be exported: it does not define export_graphs()."
        )
    network.eval().float().cpu()
    graphs: list[Graph] = export_graphs()
    return graphs
