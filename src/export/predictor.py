"""Run an exported file from image to result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from src.errors import UserError
from src.export.names import RESULT_FILE
from src.export.session import session
from src.models.detection.rcnn.postprocess import paste_masks
from src.types import Size


class ExportedModel:
    """An exported file with preprocessing inside.

    Args:
        path: ``model.onnx`` of ``python -m src export``, or a copy in another precision.
        threads: Threads of ONNX Runtime; default is its own choice.

    Attributes:
        task: ``classification``, ``detection`` or ``segmentation``.
        class_names: Names in label order.
        upright: Whether images are turned as their EXIF block says.
        mask_threshold: Minimum probability of the pixels of a mask, of detectors with masks.
        palette: Red, green and blue of each class of a segmentor, 0 to 255; empty if the file was
            written before there were colours in it.

    Raises:
        UserError: If the file is missing, is not such a file, or ONNX Runtime is not installed.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        inside = Path(path) / RESULT_FILE
        if Path(path).is_dir():
            advice = f"give {inside}" if inside.is_file() else "give an .onnx file"
            raise UserError(f"{path} is a folder; {advice}, written by python -m src export.")
        if not Path(path).is_file():
            raise UserError(f"The file {path} does not exist; write it with python -m src export.")
        try:
            self._session = session(path, threads)
        except UserError:
            raise
        except Exception as error:  # ONNX Runtime raises several unrelated classes
            reason = str(error).splitlines()[0][:160]
            raise UserError(f"{path} is not an ONNX file that can be run: {reason}") from error
        content = self._session.get_modelmeta().custom_metadata_map
        inputs = [x.type for x in self._session.get_inputs()]
        if "task" not in content or inputs != ["tensor(uint8)"]:
            raise UserError(
                f"{path} does not take images of 8 bits; write it with python -m src export and "
                "--preprocessing inside."
            )
        self.task = content["task"]
        self.class_names: list[str] = json.loads(content["names"])
        self.palette = [tuple(colour) for colour in json.loads(content.get("palette", "[]"))]
        self.mask_threshold = float(content.get("mask_threshold", "nan"))
        self.upright = bool(json.loads(content["preprocessing"]).get("upright"))

    def __call__(self, pixels: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """Run the file on an RGB image ``(H, W, 3)``; results of this image by name."""
        names = [output.name for output in self._session.get_outputs()]
        outputs = self._session.run(names, {"image": pixels[None]})
        found = dict(zip(names, outputs, strict=True))
        return found if "boxes" in found else {name: value[0] for name, value in found.items()}

    def whole_masks(
        self, masks: NDArray[Any], boxes: NDArray[np.float32], size: Size
    ) -> NDArray[np.bool_]:
        """Masks of the whole image from those that the file returned.

        Args:
            masks: Probabilities in the boxes, or masks of the whole image ``(D, H, W)``.
            boxes: Their boxes ``(D, 4)``.
            size: Height and width of the image.
        """
        if masks.dtype == np.bool_:
            return masks
        pasted = paste_masks(
            torch.from_numpy(masks), torch.from_numpy(boxes), size, self.mask_threshold
        )
        return pasted.numpy()
