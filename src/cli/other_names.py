"""Commands and settings by the names that other libraries use (timm, ultralytics, Lightning)."""

from __future__ import annotations

OTHER_COMMANDS = {
    "train": "fit",
    "finetune": "fit",
    "val": "validate",
    "eval": "validate",
    "evaluate": "validate",
    "detect": "predict",
    "infer": "predict",
    "inference": "predict",
    "classify": "predict",
    "segment": "predict",
    "convert": "export",
    "onnx": "export",
    "version": "env",
    "-v": "env",
    "info": "env",
    "download": "prepare",
    "check": "verify",
    "bench": "benchmark",
}

_SIZES = (
    "--data.image_size (classification), --data.train_scales and --data.eval_scale (detection), or"
    " --data.crop_size and --data.image_scale (segmentation)"
)
_WEIGHTS = "--model.weights FILE_OR_NAME for pretrained weights, or --ckpt_path for a checkpoint"
_DEVICES = "--trainer.accelerator gpu or cpu, and --trainer.devices for their number"
_PRECISION = "--trainer.precision bf16-mixed (or 16-mixed, 32-true)"
_OUTPUT = "--name for the name of the run, --trainer.default_root_dir for the folder of all runs"
_CLASSES = "--data.class_names for names; the number of classes is that of the data"
_RATE = (
    "--model.optimizer.lr, the rate for a batch of model.reference_batch_size images, which is"
    " scaled with the batch size"
)

_SETTINGS = {
    _RATE: "lr lr0 learning_rate base_lr init_lr",
    "--model.optimizer.weight_decay": "weight_decay wd",
    "--model.optimizer.momentum": "momentum",
    "--model.optimizer, for example torch.optim.SGD": "optimizer opt optim",
    "--model.lr_scheduler": "scheduler sched lr_scheduler cos_lr",
    "--model.lr_scheduler.warmup_epochs": "warmup warmup_epochs",
    "--model.layer_decay": "layer_decay",
    "--model.label_smoothing": "smoothing label_smoothing",
    "--model.mixup_alpha": "mixup mixup_alpha",
    "--model.cutmix_alpha": "cutmix cutmix_alpha",
    "--model.network.drop_path_rate": "drop_path drop_path_rate",
    "--model.network.variant": "model arch architecture variant backbone",
    "--model.freeze": "freeze frozen freeze_backbone frozen_stages freeze_layers",
    "--model.lora": "lora lora_rank peft",
    "--model.compile true": "compile torch_compile torchcompile",
    "--trainer.max_epochs": "epochs epoch num_epochs max_epochs n_epochs",
    "--trainer.max_steps": "max_steps steps iters max_iters iterations",
    "--trainer.num_nodes": "nodes nnodes num_nodes",
    "--trainer.strategy": "strategy distributed",
    "--trainer.gradient_clip_val": "clip_grad grad_clip max_norm gradient_clip_val clip_grad_norm",
    "--trainer.accumulate_grad_batches": (
        "accumulate accum_iter grad_accum_steps gradient_accumulation_steps accumulate_grad_batches"
    ),
    "--trainer.check_val_every_n_epoch": (
        "check_val_every_n_epoch val_interval eval_interval eval_every"
    ),
    "--trainer.log_every_n_steps": "log_interval log_every_n_steps print_freq",
    "--trainer.fast_dev_run true": "fast_dev_run dry_run debug",
    "--trainer.logger, for example WandbLogger": "logger wandb tensorboard mlflow",
    "--seed_everything": "seed random_seed manual_seed",
    "--checkpoint.every_n_epochs": "save_period save_interval checkpoint_interval",
    "--checkpoint.monitor": "monitor eval_metric",
    "--data.batch_size": "batch_size batch bs b train_batch_size",
    "--data.eval_batch_size": "val_batch_size eval_batch_size test_batch_size",
    "--data.num_workers": "workers num_workers j",
    "--data.root": "data data_dir data_path data_root dataset datadir root",
    "--data.predict_dir": "source src input img image images image_dir predict_dir file path i",
    "--data.tta true": "augment tta",
    "--detections.score, the minimum score of drawn boxes (detectors only)": (
        "conf conf_thres conf_threshold score score_thr threshold"
    ),
    "--config configs/callbacks/ema.yaml, after the recipe": "ema model_ema",
    "--config configs/callbacks/early_stopping.yaml, after the recipe": "patience early_stopping",
    "--config": "cfg conf_file config_file yaml recipe",
    _SIZES: "image_size img_size imgsz imgs size input_size resolution crop_size",
    _WEIGHTS: (
        "weights pretrained pretrain checkpoint resume load load_from resume_from"
        " resume_from_checkpoint finetune initial_checkpoint model_path checkpoint_path"
    ),
    _DEVICES: "device devices gpu gpus num_gpus ngpus accelerator nproc_per_node use_gpu cuda cpu",
    _PRECISION: "precision amp fp16 bf16 half native_amp mixed_precision dtype",
    _OUTPUT: (
        "output output_dir out out_dir outdir work_dir save_dir project log_dir logdir"
        " default_root_dir experiment run_name exp_name exist_ok o"
    ),
    _CLASSES: "num_classes nc classes n_classes class_names",
}
_ANSWERS = {name: answer for answer, names in _SETTINGS.items() for name in names.split()}


def answer_for(option: str) -> str | None:
    """The settings that correspond to an option of another library, or ``None``.

    Args:
        option: Its name, with or without leading hyphens, for example ``--batch-size``.
    """
    return _ANSWERS.get(option.lstrip("-").lower().replace("-", "_"))


def no_such_option(option: str) -> str | None:
    """Message about an option of another library, or ``None`` if it is not known.

    Args:
        option: Its name as it was given, for example ``--batch-size`` or ``--trainer.gpus``.
    """
    name = option.lstrip("-")
    answer = answer_for(name) or answer_for(name.split(".")[-1])
    kind = "option" if option.startswith("-") else "setting"
    return None if answer is None else f"There is no {kind} {option}. Use {answer}."
