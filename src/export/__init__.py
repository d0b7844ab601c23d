"""Export of networks to ONNX and torch.export files.

- ``graphs.py``: gets the graphs of a network; each becomes a file.
- ``files.py``: writes a graph in each format.
- ``operators/``: our operators as standard ONNX operators.
- ``compare.py``: runs files and PyTorch on the same inputs.
- ``card.py``: the description that is written beside the files.

The command is ``src.cli.commands.export``. onnx, onnxruntime and onnxscript are the optional extra
``export``.
"""
