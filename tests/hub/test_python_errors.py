"""Mistakes in Python end in one short traceback with a sentence."""

import traceback
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.errors import UserError
from src.hub import Pretrained
from src.inference import find_images
from tests.hub.test_pretrained import model_for


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def assert_is_short(error: UserError) -> None:
    text = "".join(traceback.format_exception(error))
    assert text.count("Traceback") == 1
    assert len(text.splitlines()) < 30


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "me/flowers",
            r"me/flowers is not cached and could not be downloaded .* \(no connection\)",
        ),
        ("", "The path or name of the model is empty"),
        (None, "from_pretrained takes a path or a name, got NoneType"),
        ("internimage_t_1k_224", "internimage_t_1k_224.pth is not on this machine"),
        ("saved", "The weight file saved/model.safetensors .* cannot be read: it is damaged"),
        ("described", "The description described/config.json .* cannot be read"),
        ("nowhere", "There is no model 'nowhere'"),
        (
            "internimage_t_1k_244",
            r"There is no model .* Did you mean internimage_t_1k_224\? Give",
        ),
        ("gone.ckpt", r"gone\.ckpt does not exist\. Give a \.ckpt file or the folder of a run"),
        (
            "https://huggingface.co/a/b/resolve/main/internimage_t_1k_224.pth?download=true",
            r"https://huggingface\.co/a/b.* is a URL\. Give 'internimage_t_1k_224' or a hub",
        ),
        ("https://huggingface.co/me/flowers", r"is a URL\. Give a name of docs/model_zoo\.md or"),
    ],
)
def test_a_model_that_cannot_be_loaded(source: str | None, message: str) -> None:
    model_for("classification").save_pretrained("saved")
    model_for("classification").save_pretrained("described")
    Path("saved/model.safetensors").write_bytes(b"nothing" * 10**5)
    Path("described/config.json").write_text("{")
    with pytest.raises(UserError, match=message) as caught:
        Pretrained.from_pretrained(source)
    assert_is_short(caught.value)


def test_exported_files_lead_to_a_folder() -> None:
    model_for("classification").save_pretrained("saved")
    Path("alone").mkdir()
    for name, advice in (
        ("saved/model.onnx", "python -m src demo --model saved/model.onnx.*Give its folder, saved"),
        ("saved/model.safetensors", "model.safetensors. Give its folder, saved"),
        ("alone/model.onnx", "Give the folder of a run, a checkpoint"),
        ("alone/internimage_t_1k_224 (1).pth", r"rename it to internimage_t_1k_224\.pth"),
        ("alone/weights.pth", r"published name, such as internimage_t_1k_224\.pth"),
    ):
        Path(name).touch()
        with pytest.raises(UserError, match=advice) as caught:
            Pretrained.from_pretrained(name)
        assert_is_short(caught.value)


def test_an_exported_folder_leads_to_all_formats_together() -> None:
    Path("exported").mkdir()
    for name, formats in (
        ("model.onnx", "onnx safetensors"),
        ("model.aoti.pt2", "onnx aoti safetensors"),
        ("model.pt2", "onnx pt2 aoti safetensors"),
    ):
        Path("exported", name).touch()
        for source in ("exported", "exported/model.onnx"):
            with pytest.raises(UserError, match=rf"export with --format {formats}\)"):
                Pretrained.from_pretrained(source)


def test_a_download_elsewhere_keeps_its_name() -> None:
    with pytest.raises(UserError, match="keep the name of the file, and give its path"):
        Pretrained.from_pretrained("internimage_t_1k_224")


def test_a_misspelt_folder_leads_to_the_others() -> None:
    Path("exported/first").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"no folder exported/frist here .*; there is first\."
    ) as caught:
        Pretrained.from_pretrained("exported/frist")
    assert_is_short(caught.value)
    Path("exported/second").mkdir()
    with pytest.raises(UserError, match="there are first, second"):
        Pretrained.from_pretrained("exported/frist")


def test_a_path_that_is_not_there_is_called_so(tmp_path: Path) -> None:
    """From another folder, or before the export; the hub would have no such repository."""
    for source in ("runs/nope", "exported/x", "./photos", "../photos", "models/mine/photos"):
        message = (
            rf"^There is no folder {Path(source)} here \(paths are relative to the current folder,"
        )
        with pytest.raises(UserError, match=rf"{message} {tmp_path.name}\)[.;]") as caught:
            Pretrained.from_pretrained(source)
        assert "huggingface.co" not in str(caught.value)
        assert_is_short(caught.value)
    with pytest.raises(UserError, match=rf"^There is no folder {tmp_path}/photos\. Give the"):
        Pretrained.from_pretrained(tmp_path / "photos")
    checkpoint = Path("runs/photos/version_0/checkpoints/last.ckpt")
    checkpoint.parent.mkdir(parents=True)
    expected = (
        r"There is a run runs/photos: give 'runs/photos', or export it with --format onnx saf"
    )
    with pytest.raises(UserError, match=expected):
        Pretrained.from_pretrained("exported/photos")


def test_a_name_of_the_hub_may_start_with_the_name_of_a_folder() -> None:
    Path("me").mkdir()
    with pytest.raises(UserError, match=r"^There is no folder me/flowers here \(") as caught:
        Pretrained.from_pretrained("me/flowers")
    assert "The model me/flowers is not cached and could not be downloaded" in str(caught.value)


def test_an_upload_needs_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_for("classification")
    with pytest.raises(UserError, match="me/flowers: there is no connection to") as caught:
        model.push_to_hub("me/flowers")
    assert_is_short(caught.value)

    class Hub:
        def create_repo(self, *_: object, **__: object) -> None:
            raise PermissionError

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("src.hub.pretrained.is_hub_reachable", lambda: True)
    with pytest.raises(UserError, match=r"PermissionError.*Log in with `hf auth login`"):
        model.push_to_hub("me/flowers")


def test_the_name_of_a_run_leads_to_its_folder() -> None:
    checkpoint = Path("runs/trial/version_0/checkpoints/last.ckpt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    with pytest.raises(UserError, match="There is a run runs/trial: give 'runs/trial'") as caught:
        Pretrained.from_pretrained("trial")
    assert_is_short(caught.value)


def test_a_missing_version_leads_to_the_others() -> None:
    for version in ("version_10", "version_2"):
        checkpoint = Path("runs/mine", version, "checkpoints/last.ckpt")
        checkpoint.parent.mkdir(parents=True)
        checkpoint.touch()
    message = "Versions with checkpoints in runs/mine are version_2, version_10"
    with pytest.raises(UserError, match=message) as caught:
        Pretrained.from_pretrained("runs/mine/version_9")
    assert_is_short(caught.value)


def test_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    model = model_for("classification")
    Path("text.jpg").write_text("no image")
    Image.new("RGB", (8, 8)).save("good.png")
    for image, message in (("gone.jpg", "no such file"), ("text.jpg", "its content is not JPEG")):
        with pytest.raises(UserError, match=message) as caught:
            model.predict(["good.png", image])
        assert_is_short(caught.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        model.predict("gone.jpg")
    Path("folder/inner").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save("folder/inner/b.png")
    Image.new("RGB", (8, 8)).save("folder/a.png")
    with pytest.raises(UserError, match=r"folder is a folder.*find_images\('folder'\)") as caught:
        model.predict("folder")
    assert_is_short(caught.value)
    found = model.predict(find_images("folder"))
    assert [result.source for result in found] == ["folder/a.png", "folder/inner/b.png"]
    with pytest.raises(UserError, match="The device 'tpu' cannot be used") as caught:
        model.predict("good.png", device="tpu")
    assert_is_short(caught.value)


def test_unknown_arguments_of_predict_lead_to_what_was_meant() -> None:
    model = model_for("detection")
    takes = "^predict takes images, batch_size and device, got"
    for name in ("score", "conf", "threshold"):
        advice = rf"{takes} {name}\. .*result\.above\(0\.5\), or result\.plot\(score=0\.5\) for"
        with pytest.raises(UserError, match=advice):
            model.predict("good.png", **{name: 0.5})  # type: ignore[call-overload]
    with pytest.raises(UserError, match=rf"{takes} batchsize\. Did you mean batch_size\?$"):
        model.predict("good.png", batchsize=2)  # type: ignore[call-overload]
    with pytest.raises(UserError, match=f"{takes} score.$"):
        model_for("classification").predict("good.png", score=0.5)  # type: ignore[call-overload]


def test_a_missing_image_is_looked_for_in_the_current_folder(tmp_path: Path) -> None:
    model = model_for("classification")
    message = rf"file\. Paths are relative to the current folder, {tmp_path.name}\.$"
    with pytest.raises(UserError, match=message) as caught:
        model.predict("photos/gone.jpg")
    assert_is_short(caught.value)
    with pytest.raises(UserError, match=r"gone\.jpg cannot be read: there is no such file\.$"):
        model.predict(tmp_path / "gone.jpg")
    Path("link.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg, which does not exist\.$"):
        model.predict("link.jpg")


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_wrong_image_of_a_list_is_counted(batch_size: int) -> None:
    model = model_for("classification")
    good = Image.new("RGB", (8, 8))
    for wrong, message in (
        ("gone.jpg", "no such file"),
        (np.full((2, 2, 3), np.nan), r"from 0 to 1, got 12 NaNs in 12 values\."),
        (5, "got int"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            model.predict(wrong)
        assert "images[" not in str(caught.value)
        with pytest.raises(
            UserError, match=rf"{message}.* This is images\[2\] of 4 images"
        ) as caught:
            model.predict([good, good, wrong, good], batch_size=batch_size)
        assert_is_short(caught.value)


@pytest.mark.parametrize("source", ["run/first", "runs/frist", "run/frist", "frist", "Runs/first"])
def test_a_misspelt_run_leads_to_the_one_that_is_there(source: str) -> None:
    checkpoint = Path("runs/first/version_0/checkpoints/last.ckpt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    with pytest.raises(UserError, match=r"Did you mean (the folder )?runs/first\?") as caught:
        Pretrained.from_pretrained(source)
    assert_is_short(caught.value)


def test_the_folder_of_all_runs_or_of_checkpoints_leads_to_a_run() -> None:
    checkpoint = Path("runs/first/version_0/checkpoints/last.ckpt")
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    (checkpoint.parents[1] / "config.yaml").touch()
    with pytest.raises(UserError, match=r"The only run with checkpoints in runs is first\."):
        Pretrained.from_pretrained("runs")
    with pytest.raises(UserError, match=r"The run is runs/first/version_0\."):
        Pretrained.from_pretrained(checkpoint.parent)
