"""Settings of results that a task or a command does not write lead to a warning."""

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from src.cli import main


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


def test_settings_of_its_own_task_and_defaults_are_accepted(fit) -> None:
    assert fit("--predictions.max_images", "3", "--detections.score", "0.3") == []


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
