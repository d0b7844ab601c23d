"""Names of the exported files, for commands that have not imported PyTorch yet."""

from pathlib import Path

RESULT_FILE = "model.onnx"
EXPORTED = Path("exported")
FORMATS = ("onnx", "pt2", "aoti", "safetensors")
DCN_FORMS = ("deformconv", "gridsample", "gather", "native")
"""Forms of DCNv3 in ONNX files."""
