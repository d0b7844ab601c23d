"""Settings of results that a task or a command does not write lead to a warning."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli import main
from src.cli.short_help import short_help


@pytest.fixture
def fit(tmp_path: Path, write_recipe: Callable[..., Path]) -> Callable[..., list[str]]:
    """Runs one step of a classifier with further arguments, and returns the warnings."""
    recipe = write_recipe(tmp_path)

    def run(*arguments: str) -> list[str]:
        where = ["--trainer.default_root_dir", str(tmp_path), "--trainer.fast_dev_run", "1"]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert main(["fit", "-c", str(recipe), *where, *arguments]) == 0
        return [str(one.message) for one in caught if "results of" in str(one.message)]

    return run


def test_settings_of_another_task_are_said_to_have_no_effect(fit) -> None:
    found = fit("--detections.score", "0.2", "--label_maps.opacity", "0.4")
    assert found == [
        "label_maps.opacity=0.4 has no effect with a ClassificationTask: it is for the results of"
        " segmentors. Leave it out.",
        "detections.score=0.2 has no effect with a ClassificationTask: it is for the results of"
        " detectors. Leave it out.",
    ]


def test_settings_of_its_own_task_are_accepted(fit) -> None:
    assert fit("--predictions.max_images", "3") == []


def test_an_option_of_another_task_has_no_effect_with_the_default_value_either(fit) -> None:
    (found,) = fit("--detections.score", "0.3")
    assert found.startswith("detections.score=0.3 has no effect with a ClassificationTask")


def test_settings_of_other_results_have_no_effect_in_predict(
    trained: Path, images: Path, tmp_path: Path
) -> None:
    checkpoint = trained / "runs/tiny/version_0/checkpoints/last.ckpt"
    run = ["predict", "--ckpt_path", str(checkpoint), "--trainer.default_root_dir", str(tmp_path)]
    run += ["--data.predict_dir", str(images / "val/red"), "--label_maps.values", "own"]
    with pytest.warns(UserWarning, match="results of") as caught:
        assert main([*run, "--detections.score", "0.4"]) == 0
    found = [str(one.message) for one in caught if "results of" in str(one.message)]
    assert found == [
        "label_maps.values=own has no effect with a ClassificationTask: it is for the results of"
        " segmentors. Leave it out.",
        "detections.score=0.4 has no effect with a ClassificationTask: it is for the results of"
        " detectors. Leave it out.",
    ]


@pytest.mark.parametrize("command", ["validate", "test"])
def test_settings_of_predictions_have_no_effect_in_an_evaluation(
    command: str, trained: Path, tmp_path: Path
) -> None:
    checkpoint = trained / "runs/tiny/version_0/checkpoints/last.ckpt"
    run = [command, "--ckpt_path", str(checkpoint), "--trainer.default_root_dir", str(tmp_path)]
    with pytest.warns(UserWarning, match="changes no metric") as caught:
        assert main([*run, "--predictions.max_images=3", "--detections.score", "0.5"]) == 0
    found = [str(one.message) for one in caught if "no effect" in str(one.message)]
    assert found == [
        f"predictions.max_images=3 has no effect in {command} and changes no metric: it is for the"
        " files that predict writes. Leave it out.",
        "detections.score=0.5 has no effect with a ClassificationTask: it is for the results of"
        " detectors. Leave it out.",
    ]


def test_settings_of_a_recipe_are_for_all_commands(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = trained / "runs/tiny/version_0"
    Path("few.yaml").write_text("predictions: {max_images: 3}")
    validate = ["validate", "-c", str(run / "config.yaml"), "-c", "few.yaml", "--name", "few"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="predictions.max_images")
        assert main([*validate, "--ckpt_path", str(run / "checkpoints/last.ckpt")]) == 0


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_the_batch_size_of_training_has_no_effect_beside_that_of_evaluation(
    command: str, trained: Path, images: Path, tmp_path: Path
) -> None:
    checkpoint = trained / "runs/tiny/version_0/checkpoints/last.ckpt"
    run = [command, "--ckpt_path", str(checkpoint), "--trainer.default_root_dir", str(tmp_path)]
    run += ["--data.predict_dir", str(images / "val/red")]

    def warned(*sizes: str) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert main([*run, *sizes]) == 0
        return [str(one.message) for one in caught if "data.batch_size" in str(one.message)]

    message = (
        f"data.batch_size=2 has no effect in {command}, which takes data.eval_batch_size=3 images"
        " at once. Set --data.eval_batch_size instead."
    )
    assert warned("--data.batch_size", "2", "--data.eval_batch_size", "3") == [message]
    assert warned("--data.eval_batch_size", "3") == []
    assert warned("--data.batch_size", "3", "--data.eval_batch_size", "3") == []
    assert warned("--data.batch_size", "2", "--data.eval_batch_size", "null") == []


def test_the_help_lists_the_batch_size_that_has_an_effect() -> None:
    for command in ("fit", "validate", "test", "predict"):
        text = short_help(command)
        assert ("--data.batch_size N " in text) == (command == "fit")
        assert ("--data.eval_batch_size N " in text) == (command != "fit")
