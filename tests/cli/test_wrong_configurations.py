"""Configuration files that are missing, misspelt or no configuration are answered in one line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize("option", ["--config", "--data"])
def test_annotations_instead_of_a_configuration(
    folder: Path, error_of: Callable[..., str], option: str
) -> None:
    Path("labels.json").write_text('{"images": [], "annotations": [], "categories": []}')
    text = error_of("fit", option, "labels.json")
    assert text == (
        "labels.json is a COCO annotation file; make a recipe by `python -m src prepare from-coco"
        " labels.json` first."
    )


def test_a_folder_instead_of_a_configuration(folder: Path, error_of: Callable[..., str]) -> None:
    Path("own").mkdir()
    assert "own is a folder; give a .yaml file." in error_of("fit", "--config", "own")
    Path("own/photos.yaml").write_text("")
    assert "give the .yaml in it: own/photos.yaml." in error_of("fit", "--config", "own")


@pytest.mark.parametrize("name", ["photos", "photos_trial"])
def test_the_name_of_a_prepared_dataset_leads_to_its_recipe(
    folder: Path, error_of: Callable[..., str], name: str
) -> None:
    assert error_of("fit", "--name", name).startswith("fit needs a recipe. Add --config configs/")
    recipe = Path("data/own/photos/photos.yaml")
    recipe.parent.mkdir(parents=True)
    shutil.copy("tiny.yaml", recipe)
    advice = "Add --config data/own/photos/photos.yaml."
    assert error_of("fit", "--name", name) == f"fit needs a recipe. {advice}"
    assert error_of("fit", "--name", name, "--data.batch_size=2").endswith(f"is given. {advice}")


def test_wrong_configuration_files(folder: Path, error_of: Callable[..., str]) -> None:
    assert "The configuration file" in (text := error_of("fit", "-c", "nowhere.yaml"))
    assert "nowhere.yaml does not exist" in text
    for name in ("tyni.yaml", "tiny.yml"):
        text = error_of("fit", "-c", name)
        assert text == f"The configuration file {name} does not exist. Did you mean tiny.yaml?"
    Path("broken.yaml").write_text("model:\n  class_path: [a\n  b: }")
    for option in ("-c", "--data", "--model.network", "--trainer"):
        text = error_of("fit", "-c", "tiny.yaml", option, "broken.yaml")
        assert text.startswith("The configuration file broken.yaml is not valid YAML in line 3")
    Path("broken.yaml").write_text("model: \x07")
    text = error_of("fit", "-c", "broken.yaml")
    assert text.startswith("The configuration file broken.yaml is not valid YAML: unacceptable")
    Path("broken.yaml").write_text("model: " + "[" * 100_000)
    text = error_of("fit", "-c", "broken.yaml")
    assert text == "The configuration file broken.yaml is nested too deeply."
    Path("model.yaml").write_text("class_path: ClassificationTask\ninit_args: {netwrk: null}")
    text = error_of("fit", "-c", "tiny.yaml", "--model", "model.yaml")
    assert "no setting 'model.netwrk'. Did you mean 'model.network'?" in text


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("tiny", "tiny.yaml"),
        ("configs/toy/detection", "configs/toy/detection.yaml"),
        ("configs/toy/detection.yml", "configs/toy/detection.yaml"),
        ("toy/detection.yaml", "configs/toy/detection.yaml"),
        ("internimage_t_1k_224", "configs/classification/internimage_t_1k_224.yaml"),
        ("configs/internimage_t_1k_225.yaml", "configs/classification/internimage_t_1k_224.yaml"),
    ],
)
def test_incomplete_names_of_configuration_files(
    folder: Path, error_of: Callable[..., str], given: str, meant: str
) -> None:
    expected = f"The configuration file {given} does not exist. Did you mean {meant}?"
    assert error_of("fit", "-c", given) == error_of("plan", f"--config={given}") == expected
    assert error_of("fit", "-c", "nowhere") == "The configuration file nowhere does not exist."


@pytest.mark.parametrize(
    "given",
    [
        "data/own/photo/photos.yaml",
        "data/own/photo/photo.yaml",
        "dat/own/photos/photos.yml",
        "data/own/photo/photos",
    ],
)
def test_configuration_files_in_a_misspelt_folder(
    folder: Path, error_of: Callable[..., str], given: str
) -> None:
    Path("data/own/photos").mkdir(parents=True)
    shutil.copy("tiny.yaml", "data/own/photos/photos.yaml")
    assert error_of("fit", "--config", given) == (
        f"The configuration file {given} does not exist. Did you mean data/own/photos/photos.yaml?"
    )
    text = error_of("fit", "--config", "data/own/photo/recipe.yaml")
    assert text.endswith("does not exist.")
