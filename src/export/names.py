"""Names of the exported files, for commands that have not imported PyTorch yet."""

from pathlib import Path

RESULT_FILE = "model.onnx"
EXPORTED = Path("exported")
