"""Official weights in and out.

- ``load.py``: `load_official` and `to_official`.
- ``files.py``: find, download and read released files.
- ``fit.py``: fit the tensors of a file to a network.
- ``names.py``: our parameter names and the official ones.
"""

from __future__ import annotations

from src.models.weights.load import LoadReport, convert_state_dict, load_official, to_official

__all__ = ["LoadReport", "convert_state_dict", "load_official", "to_official"]
