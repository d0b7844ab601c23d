"""What ``--help`` shows of the training commands: the settings that are used most.

All of them, hundreds, are listed by ``--help_all``.
"""

from __future__ import annotations

_WHAT = {
    "fit": "Train or fine-tune.",
    "validate": "Compute the metrics of the validation split.",
    "test": "Compute the metrics of the test split.",
    "predict": "Write tables and annotated images for a folder of images.",
}
_START = """\
  -c, --config FILE             recipe; given several times, later files win
  --ckpt_path last|best|FILE    {checkpoint}
  --model.weights FILE|NAME     weights to start from: own or published (docs/model_zoo.md)
  --name NAME                   results go to runs/NAME (name of the last recipe)
  --data.root FOLDER            the dataset
  --data.batch_size N           images per device and step
  --data.num_workers N          processes that load images
"""
_OWN = {
    "fit": """\
  --trainer.max_epochs N        length; or --trainer.max_steps N
  --trainer.devices N           GPUs or processes; with --trainer.strategy ddp
  --trainer.precision KIND      32-true, bf16-mixed or 16-mixed
  --model.optimizer.lr RATE     for model.reference_batch_size images a step
  --checkpoint.save_top_k N     how many best checkpoints are kept
  --trainer.fast_dev_run true   one batch of everything: does it run?
""",
    "validate": "  --data.eval_batch_size N      images per device\n",
    "test": "  --data.eval_batch_size N      images per device\n",
    "predict": """\
  --data.predict_dir FOLDER     images, or a single one
  --data.class_names NAMES      names if the dataset is not there: a file, coco, imagenet-1k
  --detections.score 0.3        detections below this are not drawn
""",
}
_CHECKPOINT = {
    "fit": "continue a training",
    "validate": "what to evaluate",
    "test": "what to evaluate",
    "predict": "what to predict with",
}


def short_help(command: str) -> str:
    """Text of ``<command> --help``."""
    start = _START.format(checkpoint=_CHECKPOINT[command])
    return (
        f"usage: python -m src {command} --config FILE [settings]\n\n{_WHAT[command]}\n\n"
        f"{start}{_OWN[command]}\n"
        f"All settings: python -m src {command} --help_all\n"
        f"What a recipe says: python -m src {command} --config FILE --print_config"
    )
