"""Recipes are found in a wheel, without a checkout."""

from src import config_files


def test_recipes_of_the_package(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs/toy").mkdir(parents=True)
    (tmp_path / "configs/toy/classification.yaml").touch()
    given = [
        "--config", "configs/toy/classification.yaml", "--config=configs/toy/detection.yaml",
        "configs/toy/other.yaml",
    ]  # fmt: skip
    assert config_files.find_configs(given) == [
        *given[:2],  # the working directory has precedence
        f"--config={config_files.CONFIGS / 'toy/detection.yaml'}",
        given[3],  # not a recipe: the command reports it as it was given
    ]
