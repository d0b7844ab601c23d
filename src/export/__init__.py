"""Export of networks to ONNX and torch.export files.

- ``package.py``: writes all files of a network; starts here.
- ``graphs.py``: gets the graphs of a network; ``files.py`` writes a graph in each format.
- ``operators/``: our operators as standard ONNX operators.
- ``results/``: joins graphs to one file from image to result; ``precision.py``: smaller weights.
- ``card.py``: the text of ``EXPORT.md``, with the sections of ``result_card.py`` and
  ``raw_card.py``; ``description.py``: its facts; ``preparation.py``: how images are prepared.
- ``script.py``: the scripts beside the files, from the file of an image to its result;
  ``drawing.py``: how they print and draw it.
- ``check.py``: runs the files on images and compares them with PyTorch.
- ``compare_graphs.py``, ``compare_results.py``: compare raw outputs, and results, with PyTorch;
  ``differences.py``: the largest differences and their limits.
- ``packages.py``: the optional packages; ``names.py``: names of the files.
- ``session.py``: opens a file in ONNX Runtime; ``predictor.py``: predicts with one, for the demo.

The command is ``src.cli.commands.export``. onnx, onnxruntime and onnxscript are the optional extra
``export``.
"""
