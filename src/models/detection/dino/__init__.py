"""DINO: detection as set prediction with denoising queries.

- ``detector.py``: forward pass of DINO and CB-DINO; read this first.
- ``padding.py``: which pixels of a batch are padding, on every feature map.
- ``transformer.py``: encoder, query selection and decoder together.
- ``decoder.py``: decoder with iterative box refinement.
- ``denoising.py``: noised ground-truth queries and their attention mask.
- ``head.py``: predictions, losses and detections. Matching and losses of sets are in
  ``src.losses.box_set``.
- ``graphs.py``: what is exported.
"""

from __future__ import annotations

from src.models.detection.dino.detector import CBDINO, DINO

__all__ = ["CBDINO", "DINO"]
