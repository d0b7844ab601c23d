"""Networks as files for other programs: ONNX and torch.export.

``graphs`` says what goes in and out of each file, ``onnx_operators`` how operators that ONNX lacks
are written with standard ones, ``files`` writes, ``compare`` runs the files against PyTorch,
``card`` is the text beside them. The command is ``src.cli.commands.export``. onnx, onnxruntime and
onnxscript are the optional extra ``export``.
"""
