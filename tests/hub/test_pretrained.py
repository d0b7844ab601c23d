"""Save and load models with class names, without a network connection."""

import json

import pytest
import torch

from src.errors import UserError
from src.hub import Pretrained, preprocessing_of
from src.models.building import build_network
from src.models.weights.files import HUB_FILES

BACKBONE = {
    "class_path": "InternImageBackbone",
    "init_args": {"channels": 8, "depths": [1, 1, 1, 1], "groups": [1, 2, 4, 8]},
}
SPECS = {
    "classification": {"class_path": "InternImage", "init_args": BACKBONE["init_args"]},
    "segmentation": {
        "class_path": "src.models.segmentation.Segmentor",
        "init_args": {
            "backbone": BACKBONE,
            "decode_head": {"class_path": "UPerHead", "init_args": {"channels": 8}},
            "auxiliary_head": None,
        },
    },
    "detection": {
        "class_path": "MaskRCNN",
        "init_args": {"backbone": BACKBONE, "channels": 8, "fc_channels": 16},
    },
}
NAMES = ["größer Hund", "cat #2", "ζέβρα"]


def model_for(task):
    torch.manual_seed(0)
    network = build_network(SPECS[task], len(NAMES)).eval()
    return Pretrained(network, SPECS[task], NAMES, task, preprocessing_of({"image_size": 64}))


@pytest.mark.parametrize("task", SPECS)
def test_a_saved_model_is_loaded(task, tmp_path):
    model = model_for(task)
    model.save_pretrained(tmp_path / "saved")
    again = Pretrained.from_pretrained(tmp_path / "saved")
    assert again.class_names == NAMES
    assert again.task == task
    assert again.preprocessing["image_size"] == 64
    assert not again.network.training
    expected = model.network.state_dict()
    assert again.network.state_dict().keys() == expected.keys()
    for name, value in again.network.state_dict().items():
        assert torch.equal(value, expected[name])
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert "größer Hund" in card
    assert f"for {task}" in card


def test_a_folder_can_be_used_as_pretrained_weights(tmp_path):
    from src.models.weights import load_official

    model_for("classification").save_pretrained(tmp_path)
    other = build_network(SPECS["classification"], 3)
    assert not load_official(other, tmp_path).fresh


def test_pushing_uploads_the_folder(tmp_path, monkeypatch):
    seen = {}

    class Hub:
        def create_repo(self, name, *, private, exist_ok):
            seen["repository"] = (name, private, exist_ok)
            return f"https://huggingface.co/{name}"

        def upload_folder(self, *, repo_id, folder_path):
            again = Pretrained.from_pretrained(folder_path)
            seen["uploaded"] = (repo_id, again.class_names)

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    url = model_for("classification").push_to_hub("me/flowers", private=True)
    assert url == "https://huggingface.co/me/flowers"
    assert seen == {"repository": ("me/flowers", True, True), "uploaded": ("me/flowers", NAMES)}


def test_models_are_loaded_from_the_hub(tmp_path, monkeypatch):
    model_for("classification").save_pretrained(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: str(tmp_path))
    assert Pretrained.from_pretrained("me/flowers").class_names == NAMES


@pytest.fixture
def nothing_is_downloaded(monkeypatch):
    """Pretend to load published files, and return their names."""
    asked = []

    class Report:
        fresh = ()

    def pretend(network, source):
        asked.append(source)
        return Report()

    monkeypatch.setattr("src.hub.parts.load_official", pretend)
    return asked


def test_published_names_have_network_and_classes(nothing_is_downloaded):
    model = Pretrained.from_pretrained("internimage_t_1k_224")
    assert nothing_is_downloaded == ["internimage_t_1k_224"]
    assert len(model.class_names) == 1000
    assert model.preprocessing["image_size"] == 224
    assert sum(p.numel() for p in model.network.parameters()) == 29_918_424


def test_an_existing_published_file_is_used(nothing_is_downloaded, tmp_path):
    file = tmp_path / "internimage_t_1k_224.pth"
    file.touch()
    assert len(Pretrained.from_pretrained(file).class_names) == 1000
    assert nothing_is_downloaded == [file]
    with pytest.raises(UserError, match="There is no file"):
        Pretrained.from_pretrained(tmp_path / "elsewhere" / "internimage_t_1k_224.pth")


PRETRAINING = [name for name in HUB_FILES if "22k_" in name]
DATA_SETS = {"cityscapes": 19, "mapillary": 19, "mapillary2cityscapes": 19, "59": 59, "nyu": 40}
DATA_SETS |= {"coco": 80, "80classes": 80, "ade20k": 150, "cocostuff164k": 171, "10k": 171}
DATA_SETS |= {"lvis": 1203, "openimages": 601, "voc0712": 20, "20classes": 20}


def published_classes(name):
    """Number of classes and first class name of a published file, from its dataset."""
    if not name.startswith(("internimage", "flash_intern")):
        for ending in ("_layer_wise_lr", "_0.1x_backbone_lr", "_ss"):
            name = name.removesuffix(ending)
        ending = name.rsplit("_", 1)[-1].removeprefix("cocostuff2")
        count = DATA_SETS[ending]
        first = {150: "wall", 40: "wall", 19: "road", 59: "aeroplane"}
        first |= {1203: "aerosol_can", 601: "Tortoise", 20: "aeroplane"}
        return count, first.get(count, "person")
    if name in PRETRAINING:
        return 21841, "organism"
    return (8142, "0") if "inat18" in name else (1000, "tench")


@pytest.mark.parametrize("name", HUB_FILES)
def test_every_published_network_can_be_built(name, nothing_is_downloaded):
    with torch.device("meta"):
        model = Pretrained.from_pretrained(f"{name}.pth")
    assert nothing_is_downloaded == [name]
    assert (len(model.class_names), model.class_names[0]) == published_classes(name)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mask2former_internimage_h_896_80k_cocostuff2ade20k", 1_313_496_135),
        ("mask2former_internimage_h_896_80k_cocostuff164k", 1_313_517_660),
        ("mask2former_internimage_h_512_40k_cocostuff164k_to_10k", 1_313_517_660),
    ],
)
def test_published_networks_have_as_many_outputs_as_classes(
    name, parameters, nothing_is_downloaded
):
    with torch.device("meta"):
        model = Pretrained.from_pretrained(name)
    assert sum(p.numel() for p in model.network.parameters()) == parameters


def test_weights_of_22k_are_for_384_pixels(nothing_is_downloaded):
    for name in PRETRAINING:
        with torch.device("meta"):
            assert Pretrained.from_pretrained(name).preprocessing["image_size"] == 384


def test_user_errors_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="There is no model 'nothing'"):
        Pretrained.from_pretrained("nothing")
    with pytest.raises(UserError, match=r"There is no model .* Did you mean internimage_t_1k_224"):
        Pretrained.from_pretrained("intern_image_t_1k_224")
    with pytest.raises(UserError, match="is not a saved model"):
        Pretrained.from_pretrained(tmp_path)
    model_for("classification").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["network"]["class_path"] = "os.system"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"is 'os\.system', and there is no such class"):
        Pretrained.from_pretrained(tmp_path)
    config["network"]["class_path"] = "InternImage"
    config["network"]["init_args"] |= {"layer_scale": 1.0, "res_post_norm": True, "speed": 9}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="has no argument 'speed'"):
        Pretrained.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"network": 5},
        {"network": None},
        {"network": {"class_path": 5}},
        {"network": {"class_path": "InternImage", "init_args": []}},
        {"network": {"class_path": "InternImage", "init_args": {"kernel_size": 10001}}},
        {"network": {"class_path": "InternImage", "init_args": {"channels": 2**19}}},
        {"class_names": 3},
        {"class_names": []},
        {"class_names": [1, 2]},
        {"class_names": ["\x1b[2J"]},
        {"task": "cooking"},
        {"task": "detection"},
        {"task": None},
        {"preprocessing": [1]},
        {"preprocessing": {"mean": {"a": 1}}},
        {"preprocessing": {"other": 1}},
    ],
)
def test_invalid_descriptions_are_refused(change, tmp_path):
    model_for("classification").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=r"config\.json") as caught:
        Pretrained.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)
