"""``python -m src plan``: memory estimates without data and without a GPU."""

import pytest

from src.cli import main
from src.cli.commands.plan import read_bytes
from src.errors import UserError


def plan(capsys, recipe, *flags):
    assert main(["plan", "--config", f"configs/{recipe}.yaml", *flags]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *((text, 80 * 10**9) for text in ("80GB", "80 gb", "80g", "80000M", "0.08T", "80")),
        *((text, 80 * 2**30) for text in ("80GiB", "80 Gi", "81920MiB")),
    ],
)
def test_memory_sizes_are_parsed(text, size):
    assert read_bytes(text) == size


def test_an_invalid_memory_size_is_refused():
    with pytest.raises(UserError, match="--memory: expected a size such as 80GB"):
        read_bytes("much")


@pytest.mark.parametrize("pairs", ["many", "inf"])
def test_an_invalid_number_of_pairs_is_refused(pairs, capsys):
    assert main(["plan", "--config", "configs/pretraining/toy.yaml", "--pairs", pairs]) == 2
    assert f"--pairs: expected a number such as 427M, got '{pairs}'" in capsys.readouterr().err


def row(output, name):
    (line,) = [line for line in output.splitlines() if line.startswith(name)]
    return [float(word) for word in line.removeprefix(name).split()[:5]], line


def test_small_networks_fit_with_every_strategy(capsys):
    output = plan(capsys, "toy/classification", "--gpus", "2", "--memory", "8GB")
    (parameters, optimizer, average, step, total), line = row(output, "ddp")
    assert optimizer == pytest.approx(2 * parameters, abs=0.011)
    assert average == 0
    assert total == pytest.approx(parameters + optimizer + step, abs=0.02)
    assert line.endswith(" fits")
    assert "--trainer.strategy ddp --trainer.devices 2 --data.batch_size 16" in output


def test_an_assumed_memory_is_explained(capsys):
    assumed = (
        "74.5 GiB,\nthe memory of a GPU with 80GB such as the A100 or H100; give that of yours"
    )
    assert assumed in plan(capsys, "toy/classification")
    assert "within 90% of 7.5 GiB.\n" in plan(capsys, "toy/classification", "--memory", "8GB")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "millions"),
    [
        ("classification/internimage_h_22kto1k_640", 1089.6),
        ("classification/internimage_g_22kto1k_512", 3076.4),
    ],
)
def test_the_largest_networks_are_planned(capsys, recipe, millions):
    output = plan(capsys, recipe, "--gpus", "8", "--memory", "80GB")
    print(output)
    assert f"{millions:,} M parameters" in output
    (ddp, _), (fsdp2, _) = row(output, "ddp"), row(output, "fsdp2")
    assert ddp[1] == pytest.approx(2 * millions * 4e6 / 2**30, rel=0.01)
    assert fsdp2[1] == pytest.approx(ddp[1] / 8, rel=0.01)
    assert fsdp2[4] < ddp[4]
    assert "Suggested settings" in output


def test_detectors_and_segmentors_are_planned(capsys):
    for recipe in ("toy/detection", "toy/segmentation"):
        output = plan(capsys, recipe, "--gpus", "1", "--memory", "8GB")
        assert "\n1 GPU, " in output
        assert "Suggested settings" in output


@pytest.mark.parametrize("flags", [("--model.freeze", "backbone"), ("--model.lora", "2")])
def test_frozen_parts_need_no_gradients_and_no_optimizer_state(capsys, flags):
    recipe, gpu = "classification/internimage_t_1k_224", ("--gpus", "1", "--memory", "8GB")
    (whole, _), (part, _) = (row(plan(capsys, recipe, *gpu, *more), "ddp") for more in ((), flags))
    assert part[1] < 0.2 * whole[1]  # optimizer
    assert part[3] < whole[3]  # gradients and activations


@pytest.mark.parametrize(
    ("recipe", "flags", "classes"),
    [
        ("classification/internimage_t_1k_224", (), "1000 classes (assumed, as the dataset is not"),
        ("classification/internimage_t_1k_224", ("--num_classes", "7"), "7 classes\n"),
        ("toy/detection", ("--data.class_names", '["a", "b"]'), "2 classes\n"),
    ],
)
def test_the_number_of_classes_is_said(capsys, recipe, flags, classes):
    assert f" M parameters, {classes}" in plan(capsys, recipe, *flags)


@pytest.mark.parametrize("command", ["plan", "benchmark"])
def test_the_help_says_what_is_done_with_a_run(capsys, command):
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert "(--config FILE | --name RUN | --ckpt_path FILE)" in text
    assert f"--name RUN         {'plan' if command == 'plan' else 'measure'} " in text
