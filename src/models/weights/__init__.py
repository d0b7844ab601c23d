"""Loading of official weights, and conversion to official names.

- ``load.py``: `load_official` and `to_official`.
- ``files.py``: find, download and read released files.
- ``fit.py``: fit the tensors of a file to a network.
- ``names.py``: parameter names of this project and the official ones.
- ``match.py``: interface between a network and the loader.
"""

from __future__ import annotations

from src.models.weights.load import LoadReport, convert_state_dict, load_official, to_official

__all__ = ["LoadReport", "convert_state_dict", "load_official", "to_official"]
