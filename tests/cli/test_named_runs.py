"""``validate``, ``test``, ``predict`` and ``export`` find the recipe of a run themselves."""

import shutil
from pathlib import Path

import pytest
import torch

from src.cli import main
from src.cli.app import TrainingCLI
from src.runs import trained_run


@pytest.fixture
def here(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with a copy of the run ``runs/tiny/version_0``."""
    folder, run = tmp_path / "here", Path("runs/tiny/version_0")
    shutil.copytree(trained / run, folder / run)
    shutil.copy(trained / "tiny.yaml", folder)
    config = folder / run / "config.yaml"
    config.write_text(config.read_text().replace(str(trained), str(folder)))
    monkeypatch.chdir(folder)
    return folder


LAST = "runs/tiny/version_0/checkpoints/last.ckpt"


@pytest.mark.parametrize(
    ("arguments", "checkpoint"),
    [
        (["--name", "tiny"], "best-epoch="),
        (["--name=tiny", "--ckpt_path", "last"], "last.ckpt"),
        (["--ckpt_path", LAST], "last.ckpt"),
        (["--ckpt_path", "runs/tiny/version_0"], "best-epoch="),
    ],
)
def test_the_checkpoint_of_a_run_is_validated(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], checkpoint: str
) -> None:
    assert main(["validate", *arguments]) == 0
    text = capsys.readouterr().out
    assert f"Checkpoint:  runs/tiny/version_0/checkpoints/{checkpoint}" in text
    assert text.count("Results:") == 1


def test_a_misspelt_run_leads_to_the_closest_one(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "--name", "tniy"]) == 2
    expected = f"There is no run runs/tniy in the current folder, {here}. Did you mean tiny?"
    assert expected in capsys.readouterr().err


def test_profile_leads_from_a_run_to_the_commands_that_read_runs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", "--model", "runs/tiny"]) == 2
    error = capsys.readouterr().err
    assert "takes the name of a variant, not a folder." in error
    assert "computed by plan --ckpt_path runs/tiny, and its speed is measured by bench" in error


@pytest.mark.parametrize("name", [["--name", "tiny"], []])
def test_a_misspelt_keyword_leads_to_the_right_one(
    here: Path, capsys: pytest.CaptureFixture[str], name: list[str]
) -> None:
    assert main(["validate", *name, "--ckpt_path", "bset"]) == 2
    assert "There is no checkpoint bset. Did you mean 'best'?" in capsys.readouterr().err


def test_a_misspelt_folder_to_predict_leads_to_the_one_that_is_there(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("data/toy/imagenet/predict").mkdir(parents=True)
    given = "data/toy/imagnet/predict"
    assert main(["predict", "--name", "tiny", "--data.predict_dir", given]) == 2
    error = capsys.readouterr().err
    assert error.endswith("a file nor a folder. Did you mean data/toy/imagenet/predict?\n")


@pytest.mark.parametrize("inside", ["", "/version_0", "/version_0/checkpoints/last.ckpt"])
def test_the_path_of_a_moved_run_in_place_of_its_name(
    here: Path, capsys: pytest.CaptureFixture[str], inside: str
) -> None:
    shutil.copytree("runs/tiny", "keep/moved_tiny")
    path = f"keep/moved_tiny{inside}"
    assert main(["validate", "--name", path]) == 2
    error = capsys.readouterr().err
    assert f"{path} is a run or a checkpoint: use --ckpt_path {path} instead of --name." in error
    assert "Did you mean" not in error
    assert trained_run(path).config == Path("keep/moved_tiny/version_0/config.yaml")


@pytest.mark.parametrize("is_started", [False, True])
def test_a_run_without_a_checkpoint_leads_to_its_trial(
    here: Path, capsys: pytest.CaptureFixture[str], is_started: bool
) -> None:
    shutil.copytree("runs/tiny", "runs/photos_trial")
    if is_started:
        Path("runs/photos/version_0").mkdir(parents=True)
    assert main(["predict", "--name", "photos"]) == 2
    sentence = "Its trial photos_trial has a checkpoint: use photos_trial instead."
    assert sentence in capsys.readouterr().err
    assert main(["predict", "--name", "tniy"]) == 2
    assert "Its trial" not in capsys.readouterr().err


def test_images_are_predicted_by_a_named_run(here: Path, images: Path) -> None:
    assert main(["predict", "--name", "tiny", "--data.predict_dir", str(images / "val/red")]) == 0
    tables = list(Path("runs/tiny").glob("predict_*/predictions.csv"))
    assert len(tables[0].read_text().splitlines()) == 1 + 4


def test_image_files_of_other_formats_are_named(
    here: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(images / "val/red", here / "photos")
    predict = ["predict", "--name", "tiny", "--data.predict_dir", str(folder)]
    assert main(predict) == 0
    assert "Left out:" not in capsys.readouterr().out
    for name in ("notes.txt", "list.TXT", "paper.pdf", ".hidden.txt"):
        (folder / name).write_text("not an image")
    assert main(predict) == 0
    printed = capsys.readouterr().out
    note = "Left out:    files without the extension of an image (1 .pdf, 2 .txt)\n"
    assert printed.count("Left out:") == printed.count(note) == 1
    (folder / "inside").mkdir()
    for name in ("a.gif", "inside/B.AVIF", ".hidden.gif"):
        (folder / name).write_bytes(b"")
    assert main(predict) == 0
    printed = capsys.readouterr().out
    assert "Left out:    2 image files with other extensions than .jpg," in printed
    assert ": a.gif, inside/B.AVIF\n" in printed
    assert note in printed
    assert main([*predict[:-1], str(sorted(folder.glob("*.png"))[0])]) == 0
    assert "Left out:" not in capsys.readouterr().out


def test_a_run_predicts_without_its_dataset(here: Path, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs/moved/version_0"
    shutil.copytree(here / "runs/tiny/version_0", run)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(f"root: {images}", "root: elsewhere"))
    flags = ["--data.predict_dir", str(images / "val/red"), "--name", "moved"]
    assert main(["predict", "--ckpt_path", str(run), *flags]) == 0
    (table,) = Path("runs/moved/predict_0").glob("predictions.csv")
    assert {"blue", "green", "red"} <= set(table.read_text().replace("\n", ",").split(","))


@pytest.mark.parametrize(
    ("run", "results"),
    [
        ("elsewhere/renamed/version_0", "elsewhere/renamed"),
        ("elsewhere/copied", "elsewhere/copied"),
        ("here/runs/tiny/version_0", "here/runs/tiny"),
    ],
)
@pytest.mark.parametrize("is_file", [True, False])
def test_results_are_beside_the_run_of_the_checkpoint(
    run: str,
    results: str,
    is_file: bool,
    here: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / run
    if not folder.exists():
        shutil.copytree(here / "runs/tiny/version_0", folder)
    current = tmp_path / "current"
    current.mkdir()
    monkeypatch.chdir(current)
    given = Path("..", run, *(["checkpoints/last.ckpt"] if is_file else []))
    flags = ["--ckpt_path", str(given), "--data.predict_dir", str(images / "val/red")]
    assert main(["predict", *flags]) == 0
    table = tmp_path / results / "predict_0/predictions.csv"
    assert table.is_file()
    assert f"Predictions: {table} (4 files)" in capsys.readouterr().out
    assert main(["validate", *flags]) == 0
    assert f"Results:     {tmp_path / results / 'validate_0'}\n" in capsys.readouterr().out
    assert list(current.iterdir()) == []


def test_results_of_a_run_in_a_folder_that_cannot_be_written_to(
    here: Path,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make = Path.mkdir

    def refuse(path: Path, *args: bool, **options: bool) -> None:  # as of another user
        if path.is_relative_to(here / "runs/tiny"):
            raise PermissionError(13, "Permission denied")
        make(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    current = here / "current"
    make(current)
    monkeypatch.chdir(current)
    flags = ["--ckpt_path", f"../{LAST}", "--data.predict_dir", str(images / "val/red")]
    assert main(["predict", *flags]) == 2
    assert (
        f"Cannot create the run folder {here}/runs/tiny/predict_0 (Permission denied). Choose"
        " another location with --trainer.default_root_dir."
    ) in capsys.readouterr().err
    assert main(["predict", *flags, "--trainer.default_root_dir", "results"]) == 0
    assert Path("results/tiny/predict_0/predictions.csv").is_file()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {class_path: ImageNetDataModule}", "The configuration has no data.init_args"),
        ("data: [", "version_0/config.yaml cannot be read"),
    ],
)
def test_a_damaged_configuration_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    Path("runs/tiny/version_0/config.yaml").write_text(text)
    assert main(["predict", "--name", "tiny"]) == 2
    assert message in capsys.readouterr().err


def test_an_option_may_be_longer_than_a_file_name(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = f"--data.predict_dir={'a' * 300}"
    assert main(["fit", option, "-c", "tiny.yaml", "--print_config"]) == 0
    assert "a" * 300 in capsys.readouterr().out


@pytest.mark.parametrize("run", [("--name", "tiny"), ("--ckpt_path", "runs/tiny/version_0")])
def test_a_run_is_planned_and_measured(
    here: Path, capsys: pytest.CaptureFixture[str], run: tuple[str, str]
) -> None:
    assert main(["plan", *run, "--gpus", "2", "--data.batch_size", "4"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tiny: InternImage")
    assert "2 GPUs, 4 images of" in text
    before = set(here.rglob("*"))
    assert main(["benchmark", *run, "--warmup", "1", "--steps", "2"]) == 0
    assert "| tiny | inference |" in capsys.readouterr().out
    assert set(here.rglob("*")) == before


@pytest.mark.parametrize("is_present", [True, False])
def test_a_run_is_planned_with_its_own_classes(
    here: Path, images: Path, capsys: pytest.CaptureFixture[str], is_present: bool
) -> None:
    config = Path("runs/tiny/version_0/config.yaml")
    root = images if is_present else "elsewhere"
    config.write_text(config.read_text().replace(f"root: {images}", f"root: {root}"))
    assert main(["plan", "--name", "tiny"]) == 0
    assert " M parameters, 3 classes\n" in capsys.readouterr().out


def test_a_named_run_is_exported(here: Path, tmp_path: Path) -> None:
    flags = ["--format", "safetensors", "--out", str(tmp_path)]
    assert main(["export", "--name", "tiny", *flags]) == 0
    first = (tmp_path / "model.safetensors").read_bytes()
    assert main(["export", "--ckpt_path", "runs/tiny/version_0", *flags]) == 0
    assert (tmp_path / "model.safetensors").read_bytes() == first


@pytest.mark.parametrize("command", ["validate", "predict", "export", "plan"])
def test_a_checkpoint_of_another_run_is_refused(
    here: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    shutil.copytree("runs/tiny", "runs/other")
    config = Path("runs/other/version_0/config.yaml")
    config.write_text(config.read_text().replace("name: tiny", "name: other"))
    before = set(here.rglob("*"))
    assert main([command, "--name", "other", "--ckpt_path", "runs/tiny/version_0"]) == 2
    assert (
        "runs/tiny/version_0 is a checkpoint of the run tiny, but --name other is another run."
        in capsys.readouterr().err
    )
    assert set(here.rglob("*")) == before


def test_results_of_a_checkpoint_may_have_a_new_name(here: Path) -> None:
    for number in range(2):
        assert main(["validate", "--name", "new", "--ckpt_path", "runs/tiny/version_0"]) == 0
        assert Path(f"runs/new/validate_{number}/metrics.csv").is_file()
    shutil.copytree("runs/tiny/version_0", "copied")  # whose config.yaml has the name tiny
    assert main(["validate", "--name", "tiny", "--ckpt_path", "copied"]) == 0


def test_training_is_resumed_from_a_file(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--trainer.max_epochs", "3", "--trainer.default_root_dir", str(tmp_path)]
    assert main(["fit", "--ckpt_path", LAST, *flags]) == 0
    assert "Resuming at epoch 2" in capsys.readouterr().out


def test_a_new_version_of_a_run_is_announced(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    note = (
        "runs/tiny has earlier versions; --name tiny means this one from now on, --ckpt_path"
        " runs/tiny/version_0 the previous one"
    )
    short = ["--trainer.max_epochs", "1", "--model.lr_scheduler.warmup_epochs", "0"]
    assert main(["fit", "-c", "tiny.yaml", *short]) == 0
    assert note in capsys.readouterr().out
    assert main(["fit", "-c", "tiny.yaml", *short, "--name", "other"]) == 0
    assert "earlier versions" not in capsys.readouterr().out


@pytest.mark.parametrize("command", ["validate", "predict", "export"])
def test_a_run_is_needed(here: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--ckpt_path", "best"]) == 2
    assert "--ckpt_path best needs the name of the run, --name RUN" in capsys.readouterr().err
    assert main([command, "--name", "tyni"]) == 2
    assert "The only run with checkpoints in runs is tiny." in capsys.readouterr().err


def replace_best_before(monkeypatch: pytest.MonkeyPatch, function: str) -> Path:
    """Let a training of the run replace its best checkpoint before a function is called first."""
    (best,) = Path("runs/tiny/version_0/checkpoints").glob("best*")
    later = best.with_name("best-epoch=9.ckpt")
    content = torch.load(best, weights_only=True)
    for state in content["callbacks"].values():
        if "best_model_path" in state:
            state["best_model_path"] = str(later)
    original = getattr(TrainingCLI, function)

    def replace_and_call(self: TrainingCLI, *arguments: object) -> object:
        if best.exists():
            torch.save(content, later)
            best.unlink()
        return original(self, *arguments)

    monkeypatch.setattr(TrainingCLI, function, replace_and_call)
    return later


@pytest.mark.parametrize("function", ["before_instantiate_classes", "_run"])
def test_a_checkpoint_that_a_training_replaces_is_looked_for_again(
    here: Path, images: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    replaced = replace_best_before(monkeypatch, function)
    assert main(["predict", "--name", "tiny", "--data.predict_dir", str(images / "val/red")]) == 0
    assert replaced.exists()
    (folder,) = Path("runs/tiny").glob("predict_*")
    assert (folder / "predictions.csv").exists()


def test_an_exported_checkpoint_that_a_training_replaces(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = replace_best_before(monkeypatch, "before_instantiate_classes")
    flags = ["--format", "safetensors", "--out", str(tmp_path)]
    assert main(["export", "--name", "tiny", *flags]) == 0
    assert f"Weights: {replaced}" in capsys.readouterr().out


def test_ranks_do_not_look_for_another_checkpoint(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    replace_best_before(monkeypatch, "before_instantiate_classes")
    assert main(["validate", "--name", "tiny"]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_an_untrained_network_names_the_options(
    here: Path, images: Path, recwarn: pytest.WarningsRecorder
) -> None:
    flags = ["--name", "new", "--data.predict_dir", str(images / "val/red")]
    assert main(["predict", "-c", "tiny.yaml", *flags]) == 0
    text = " ".join(str(warning.message) for warning in recwarn)
    assert "neither --ckpt_path nor --model.weights is set" in text


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_an_untrained_network_is_refused_beside_a_trained_one(
    command: str, here: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(Path("runs/tiny").iterdir())
    recipe = ["-c", "tiny.yaml", "--name", "tiny", "--data.predict_dir", str(images / "val/red")]
    assert main([command, *recipe]) == 2
    error = capsys.readouterr().err
    assert "runs/tiny has a trained one: add --ckpt_path best, or give --name tiny with" in error
    assert sorted(Path("runs/tiny").iterdir()) == before
    assert main([command, *recipe, "--ckpt_path", "best"]) == 0
    assert main([command, *recipe[2:]]) == 0


def test_options_override_a_recipe_in_any_order(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data.image_size=64", "--trainer.max_epochs", "7"]
    for args in (["-c", "tiny.yaml", *options], [*options, "--config", "tiny.yaml"]):
        assert main(["fit", *args, "--print_config"]) == 0
        text = capsys.readouterr().out
        assert "image_size: 64" in text
        assert "max_epochs: 7" in text
