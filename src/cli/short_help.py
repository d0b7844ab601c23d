"""Short ``--help`` of the training commands, with the most common settings.

``--help_all`` lists all settings.
"""

from __future__ import annotations

_DESCRIPTION = {
    "fit": "Train or fine-tune.",
    "validate": "Compute the metrics of the validation split.",
    "test": "Compute the metrics of the test split.",
    "predict": "Write tables and annotated images for a folder of images.",
}
_START = """\
  -c, --config FILE             recipe; can be repeated, later files override earlier ones
{run}  --model.weights FILE|NAME     pretrained weights: a file or a name (docs/model_zoo.md)
  --data.root FOLDER            the dataset
{batch}  --data.num_workers N          data loader workers
"""
_TRAINING_BATCH = "  --data.batch_size N           images per device and step\n"
_EVALUATION_BATCH = "  --data.eval_batch_size N      images per device\n"
_OWN = {
    "fit": """\
  --trainer.max_epochs N        training length; or --trainer.max_steps N
  --trainer.devices N           number of devices; with --trainer.strategy ddp
  --trainer.precision KIND      32-true, bf16-mixed or 16-mixed
  --model.optimizer.lr RATE     learning rate for model.reference_batch_size images per step
  --model.freeze backbone       train only the heads (docs/fine_tuning.md)
  --checkpoint.save_top_k N     number of best checkpoints to keep
  --trainer.fast_dev_run true   run one batch of each loop as a quick test
""",
    "validate": "",
    "test": "",
    "predict": """\
  --data.predict_dir FOLDER     folder of images, or a single image
  --data.class_names NAMES      class names if there is no dataset: a file, coco, imagenet-1k
  --detections.score 0.3        minimum score of drawn detections
""",
}
_NEW_RUN = """\
  --name NAME                   write to runs/NAME (default: names of the recipes)
  --ckpt_path last|best|FILE    checkpoint to resume from
"""
_TRAINED_RUN = """\
  --name RUN                    a trained run: its recipe and its best checkpoint
  --ckpt_path last|best|FILE    another checkpoint; a FILE alone also brings its recipe
"""


def short_help(command: str) -> str:
    """Text of ``<command> --help``."""
    is_new = command == "fit"
    start = _START.format(
        run=_NEW_RUN if is_new else _TRAINED_RUN,
        batch=_TRAINING_BATCH if is_new else _EVALUATION_BATCH,
    )
    what = "--config FILE" if is_new else "--name RUN | --ckpt_path FILE | --config FILE"
    return (
        f"usage: python -m src {command} {what} [settings]\n\n{_DESCRIPTION[command]}\n\n"
        f"{start}{_OWN[command]}\n"
        f"All settings: python -m src {command} --help_all\n"
        f"Resolved configuration: python -m src {command} --config FILE --print_config"
    )
