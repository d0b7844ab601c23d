"""Released files in every container go in and come out under the official names."""

import argparse
import gzip
import hashlib
import json
import logging
import pickle
import sys
import types
from collections import deque

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from src.errors import UserError
from src.models import ARCHITECTURES, InternImage, InternImageBackbone
from src.models.internimage.imagenet22k import indices_22k_to_1k
from src.models.weights import load_official, to_official
from src.models.weights.names import official_names

SMALL = {"channels": 16, "depths": (1, 1, 2, 1), "groups": (1, 2, 4, 8)}
HUGE_LIKE = {
    "res_post_norm": True,
    "dw_kernel_size": 5,
    "center_feature_scale": True,
    "level2_post_norm_block_ids": (1,),
    "use_clip_projector": True,
}


def small(num_classes=10, **kwargs):
    torch.manual_seed(0)
    return InternImage(num_classes, **(SMALL | kwargs))


def randomized(network):
    """Other values than any constructor gives, also in norms and buffers."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5, generator=generator)
    return network


@pytest.fixture(scope="module")
def source():
    return randomized(small(layer_scale=1e-5, post_norm=True))


@pytest.fixture(scope="module")
def manifests(fixtures_dir):
    with gzip.open(fixtures_dir / "state_dict_manifests.json.gz") as file:
        return json.load(file)


def target(**kwargs):
    return small(**({"layer_scale": 1e-5, "post_norm": True} | kwargs))


def assert_same(network, expected):
    state = network.state_dict()
    assert state.keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert torch.equal(state[key], value), key


# Names


@pytest.mark.parametrize("variant", ["t", "s", "b", "l", "xl", "h", "g"])
def test_official_names_and_shapes_of_classifiers(variant, manifests):
    with torch.device("meta"):
        network = timm.create_model(f"internimage_{variant}")
    shapes = {name: list(tensor.shape) for name, tensor in to_official(network).items()}
    assert shapes == manifests["classification_1000"][variant.upper()]


@pytest.mark.parametrize("variant", ["t", "s", "b", "l", "xl", "h", "g"])
def test_official_names_and_shapes_of_dense_backbones(variant, manifests):
    arguments = dict(ARCHITECTURES[f"internimage_{variant}"])
    arguments.pop("use_clip_projector", None)
    if variant in "tsblxl":
        arguments["layer_scale"] = 1.0
    with torch.device("meta"):
        backbone = InternImageBackbone(**arguments)
    shapes = {name: list(tensor.shape) for name, tensor in to_official(backbone).items()}
    assert shapes == manifests["backbone_detseg"][variant.upper()]


def test_names_keep_the_prefix_of_the_backbone():
    detector = torch.nn.ModuleDict({"backbone": InternImageBackbone(**SMALL)})
    assert "backbone.levels.0.norm.0.weight" in official_names(detector).values()


@pytest.mark.parametrize("kwargs", [{}, {"layer_scale": 1.0, "post_norm": True}, HUGE_LIKE])
def test_round_trip_is_bitwise(kwargs):
    network = randomized(small(**kwargs))
    other = small(**kwargs)
    report = load_official(other, to_official(network))
    assert_same(other, network)
    assert not report.fresh
    assert not report.unused
    assert not report.notes


def test_files_of_the_other_operator_are_refused():
    """T and FlashInternImage-T have the same widths and depths."""
    arguments = {"channels": 64, "depths": (4, 4, 18, 4), "groups": (4, 8, 16, 32)}
    with torch.device("meta"):
        flash = to_official(InternImage(10, "flash_internimage_t"))
    network = InternImage(10, **arguments)
    message = "holds flash_internimage_t .* does not fit the network, internimage_t .*"
    with pytest.raises(UserError, match=message + "Build the network as flash_internimage_t"):
        load_official(network, flash)


# Containers


CONTAINERS = ["model", "module", "state_dict", "model_state_dict", "weights", "net", "model_ema"]


@pytest.mark.parametrize("key", [None, *CONTAINERS])
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "student.", "module.backbone."])
def test_pth_containers_and_prefixes(source, tmp_path, key, prefix):
    weights = {prefix + name: tensor for name, tensor in to_official(source).items()}
    content = weights if key is None else {key: weights, "epoch": 299, "max_accuracy": 83.5}
    torch.save(content, tmp_path / "file.pth")
    network = target()
    load_official(network, tmp_path / "file.pth")
    assert_same(network, source)


@pytest.mark.parametrize("prefix", ["", "student."])
@pytest.mark.parametrize("nested", ["", "0."])
def test_masked_modelling_checkpoint(prefix, nested):
    network = randomized(small(**HUGE_LIKE))
    heads = {f"fc_norm.{nested}": f"clip.classifier_ln.{nested}", "head.": "clip.classifier."}

    def renamed(name):
        for ours, theirs in heads.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return "dcnv3." + name

    names = to_official(network) if nested else network.state_dict()
    weights = {prefix + renamed(name): tensor for name, tensor in names.items()}
    weights[f"{prefix}mask_token"] = torch.zeros(1, 1, 16)
    other = small(**HUGE_LIKE)
    report = load_official(other, {"model": weights})
    assert_same(other, network)
    assert report.unused == ("mask_token",)


def test_nested_container_and_legacy_format(source, tmp_path):
    content = {"model": {"state_dict": to_official(source)}}
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    network = target()
    load_official(network, tmp_path / "old.pth")
    assert_same(network, source)


@pytest.mark.parametrize(
    "beside",
    [
        {"best_acc": torch.tensor(0.8)},
        {"model": {}},
        {"model": {"name": "internimage_t"}, "scale": torch.ones(1)},
        {"module": {"state_dict": {}}},
    ],
)
def test_the_container_is_found_beside_other_entries(source, beside):
    network = target()
    load_official(network, beside | {"state_dict": to_official(source)})
    assert_same(network, source)


@pytest.mark.parametrize("prefer_ema", [True, False])
def test_averaged_weights_beside_a_single_tensor(source, prefer_ema):
    network = target()
    content = {"ema": {"state_dict": to_official(source)}, "decay": torch.tensor(0.99)}
    load_official(network, content, prefer_ema=prefer_ema)
    assert_same(network, source)


def test_a_state_dict_is_not_hidden_by_an_entry_like_a_container(source):
    network = target()
    load_official(network, {"ema": {"decay": torch.tensor(0.99)}, **to_official(source)})
    assert_same(network, source)


def test_averaged_weights_on_request(source, tmp_path):
    raw = to_official(target())
    torch.save({"model": raw, "model_ema": to_official(source)}, tmp_path / "both.pth")
    network = target()
    load_official(network, tmp_path / "both.pth")
    assert_same(network, target())
    load_official(network, tmp_path / "both.pth", prefer_ema=True)
    assert_same(network, source)


def test_own_names_are_accepted_too(source, tmp_path):
    """A checkpoint of this project, with the prefix that a task adds."""
    content = {f"network.{k}": v for k, v in source.state_dict().items()}
    torch.save({"state_dict": content}, tmp_path / "own.ckpt")
    network = target()
    load_official(network, tmp_path / "own.ckpt")
    assert_same(network, source)


def test_half_precision_is_widened(source, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in to_official(source).items()}
    torch.save({"state_dict": half}, tmp_path / "half.pth")
    network = target().double()
    load_official(network, tmp_path / "half.pth")
    assert network.head.weight.dtype == torch.float64
    assert torch.equal(network.head.weight, source.head.weight.half().double())


def as_transformers(network):
    names = {
        f"model.{name}".replace("gamma", "layer_scale"): tensor.contiguous().clone()
        for name, tensor in to_official(network).items()
    }
    assert any("layer_scale1" in name for name in names)
    return names


def test_safetensors_of_the_transformers_repositories(source, tmp_path):
    save_file(as_transformers(source), tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        network = target()
        load_official(network, path)
        assert_same(network, source)


def write_shards(network, folder):
    tensors = as_transformers(network)
    names = sorted(tensors)
    index = {}
    for i, part in enumerate([names[::2], names[1::2]], start=1):
        file = f"model-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_sharded_safetensors(source, tmp_path):
    write_shards(source, tmp_path)
    network = target()
    load_official(network, tmp_path)
    assert_same(network, source)


def test_missing_shard_is_named(source, tmp_path):
    write_shards(source, tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors"):
        load_official(target(), tmp_path)


@pytest.fixture
def yacs(monkeypatch):
    """A module like yacs, present while a file is written and gone when it is read."""

    class CfgNode(dict):
        def __init__(self, content):
            super().__init__(content)
            self.__dict__["__immutable__"] = True

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    package, module = types.ModuleType("yacs"), types.ModuleType("yacs.config")
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, "yacs", package)
    monkeypatch.setitem(sys.modules, "yacs.config", module)
    yield CfgNode
    assert "yacs" not in sys.modules


@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoint_with_a_yacs_configuration(source, tmp_path, monkeypatch, yacs, zipped):
    config = yacs({"MODEL": yacs({"DEPTHS": [1, 1, 2, 1]}), "AMP": True})
    content = {"model": to_official(source), "config": config, "epoch": 3}
    torch.save(content, tmp_path / "run.pth", _use_new_zipfile_serialization=zipped)
    monkeypatch.delitem(sys.modules, "yacs.config")
    monkeypatch.delitem(sys.modules, "yacs")
    network = target()
    load_official(network, tmp_path / "run.pth")
    assert_same(network, source)


@pytest.mark.parametrize("zipped", [True, False])
def test_training_checkpoint_with_numbers_and_histories(source, tmp_path, zipped):
    meta = {"mAP": np.float64(0.5), "lr": deque([0.1]), "args": argparse.Namespace(seed=1)}
    content = {"meta": meta, "state_dict": to_official(source)}
    torch.save(content, tmp_path / "run.pth", _use_new_zipfile_serialization=zipped)
    network = target()
    load_official(network, tmp_path / "run.pth")
    assert_same(network, source)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_file_never_runs(source, tmp_path):
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return (exec, (f"open({str(marker)!r}, 'w').close()",))

    torch.save({"model": to_official(source), "config": Payload()}, tmp_path / "bad.pth")
    load_official(target(), tmp_path / "bad.pth")
    assert not marker.exists()
    with (tmp_path / "plain.pth").open("wb") as file:
        pickle.dump({"model": Payload()}, file)
    with pytest.raises(UserError, match=r"plain\.pth"):
        load_official(target(), tmp_path / "plain.pth")
    assert not marker.exists()


# Heads, layer scales, centre


def test_22k_head_takes_the_official_rows():
    rows = "\n".join(str(row) for row in indices_22k_to_1k())
    # sha256 of the official list, one row per line, without a final newline
    checksum = "a74bcc201e55d68a3ecbe09a82c63d753168607f4a707abb1f560db163cc4e99"
    assert hashlib.sha256(rows.encode()).hexdigest() == checksum


def test_22k_head_becomes_a_1k_head(caplog):
    wide = randomized(small(num_classes=21841))
    network = small(num_classes=1000)
    report = load_official(network, to_official(wide))
    index = list(indices_22k_to_1k())
    assert torch.equal(network.head.weight, wide.head.weight[index])
    assert torch.equal(network.head.bias, wide.head.bias[index])
    assert not report.fresh
    assert "rows of the 1000 classes" in caplog.text


def test_other_class_count_keeps_a_fresh_head(source, caplog):
    network = target(num_classes=7)
    before = network.head.weight.clone()
    report = load_official(network, to_official(source))
    assert torch.equal(network.head.weight, before)
    assert report.fresh == ("head.weight", "head.bias")
    assert repr(report).endswith(f"loaded={len(report.loaded)}, fresh=2, unused=0)")
    assert "has 10 classes, the network 7: the head is randomly initialised" in caplog.text
    assert torch.equal(network.conv_head.conv.weight, source.conv_head.conv.weight)


def test_classifier_file_into_a_detector_backbone(source, caplog):
    backbone = InternImageBackbone(**SMALL, layer_scale=1.0, post_norm=True)
    detector = torch.nn.ModuleDict({"backbone": backbone, "neck": torch.nn.Conv2d(2, 2, 1)})
    report = load_official(detector, to_official(source))
    gamma = "levels.2.blocks.1.gamma2"
    assert torch.equal(backbone.state_dict()[gamma], source.state_dict()[gamma])
    assert report.fresh == ("neck.weight", "neck.bias")
    assert "has no neck; its initial values stay" in caplog.text
    assert "also holds conv_head, head, which are not used" in caplog.text


def test_detector_file_into_a_classifier(source):
    names = {f"backbone.{k}": v for k, v in to_official(source).items() if "head" not in k}
    network = target()
    report = load_official(network, names | {"neck.conv.weight": torch.zeros(1)})
    assert torch.equal(network.patch_embed.conv1.weight, source.patch_embed.conv1.weight)
    assert {key.split(".")[0] for key in report.fresh} == {"conv_head", "head"}
    assert report.unused == ("neck.conv.weight",)


def test_missing_layer_scales_start_at_one(caplog):
    plain = randomized(small())
    network = randomized(small(layer_scale=1.0))
    load_official(network, to_official(plain))
    assert torch.equal(network.levels[0].blocks[0].gamma1, torch.ones(16))
    assert "same function" in caplog.text
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(network.eval()(image), plain.eval()(image))


def test_centre_rows_are_dropped(caplog):
    full = randomized(small())
    network = small(remove_center=True)
    load_official(network, to_official(full))
    kept = [0, 1, 2, 3, 5, 6, 7, 8]
    mask = full.levels[1].blocks[0].dcn.mask.weight.unflatten(0, (2, 9))[:, kept].flatten(0, 1)
    assert torch.equal(network.levels[1].blocks[0].dcn.mask.weight, mask)
    offset = full.levels[1].blocks[0].dcn.offset.bias.unflatten(0, (2, 9, 2))[:, kept].flatten()
    assert torch.equal(network.levels[1].blocks[0].dcn.offset.bias, offset)
    assert "centre" in caplog.text


def test_other_image_channels(source):
    network = target(in_chans=1)
    load_official(network, to_official(source))
    expected = source.patch_embed.conv1.weight.sum(1, keepdim=True)
    torch.testing.assert_close(network.patch_embed.conv1.weight, expected)


# Refusals


def test_other_variant_is_refused(source, tmp_path):
    torch.save({"model": to_official(source)}, tmp_path / "small.pth")
    network = timm.create_model("internimage_nano")
    before = [p.clone() for p in network.parameters()]
    with pytest.raises(UserError) as caught:
        load_official(network, tmp_path / "small.pth")
    message = str(caught.value)
    assert "small.pth" in message
    assert "16 channels, depths 1/1/2/1" in message
    assert "internimage_nano (32 channels, depths " in message
    assert "differ in shape" in message
    assert len(message) < 1000
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


def test_published_variant_is_recognised():
    with torch.device("meta"):
        file = to_official(timm.create_model("internimage_s"))
    with pytest.raises(UserError, match="Build the network as internimage_s"):
        load_official(timm.create_model("internimage_nano"), file)


@pytest.mark.parametrize(
    ("file", "own", "message"),
    [
        ("BN", "LN", r"LayerNorm\): .* batch norm; make .* --model\.network\.norm_layer BN"),
        ("LN", "BN", r"batch norm\): .* LayerNorm; make .* --model\.network\.norm_layer LN"),
    ],
)
def test_another_kind_of_norm_is_named(file, own, message):
    tensors = to_official(timm.create_model("internimage_nano", norm_layer=file))
    network = timm.create_model("internimage_nano", features_only=True, norm_layer=own)
    with pytest.raises(UserError, match=message):
        load_official(network, tensors)
    same = timm.create_model("internimage_nano", features_only=True, norm_layer=file)
    load_official(same, tensors)


def test_the_option_of_the_norm_is_that_of_the_backbone():
    tensors = to_official(timm.create_model("internimage_nano", norm_layer="LN"))
    network = torch.nn.ModuleDict(
        {"backbone": timm.create_model("internimage_nano", features_only=True, norm_layer="BN")}
    )
    with pytest.raises(UserError, match=r"--model\.network\.backbone\.norm_layer LN \(in Python"):
        load_official(network, tensors)


def test_unexpected_layer_scales_are_refused(source):
    with pytest.raises(UserError, match=r"Set layer_scale to 1\.0"):
        load_official(small(post_norm=True), to_official(source))


def test_missing_layer_scales_are_refused_unless_they_do_nothing():
    with pytest.raises(UserError, match="Set layer_scale to null"):
        load_official(small(layer_scale=1e-5), to_official(small()))


def test_half_a_head_is_refused(source):
    weights = to_official(source)
    del weights["conv_head.1.0.running_var"]
    with pytest.raises(UserError, match=r"part 'conv_head'.*conv_head\.norm\.running_var"):
        load_official(target(), weights)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_truncated_file(source, tmp_path, suffix):
    path = tmp_path / f"file.{suffix}"
    if suffix == "pth":
        torch.save({"model": to_official(source)}, path)
    else:
        save_file(as_transformers(source), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=rf"file\.{suffix} \(.* bytes\) cannot be read") as caught:
        load_official(target(), path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [{"epoch": 3}, {"fc.weight": torch.zeros(2, 2)}, [torch.zeros(2)]]
)
def test_files_of_something_else(tmp_path, content):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth"):
        load_official(target(), tmp_path / "other.pth")


def test_unknown_name_lists_what_is_accepted():
    with pytest.raises(UserError, match=r"no weight file 'internimage_q'.*internimage_t_1k_224"):
        load_official(target(), "internimage_q")


def test_folder_without_a_clear_file(tmp_path):
    with pytest.raises(UserError, match="holds 0 weight files"):
        load_official(target(), tmp_path)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UserError, match="--format onnx safetensors"):
        load_official(target(), tmp_path)


def test_a_run_is_its_best_checkpoint(trained):
    sizes = {"channels": 8, "depths": (1, 1, 1, 1), "groups": (1, 2, 4, 8)}
    network, backbone = InternImage(3, **sizes), InternImageBackbone(**sizes)
    report = load_official(network, trained / "runs" / "tiny")
    assert "runs/tiny/version_0/checkpoints/best-epoch=" in report.source
    assert report.class_names == ("blue", "green", "red")
    assert not report.fresh
    load_official(backbone, trained / "runs" / "tiny" / "version_0")
    expected = network.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in backbone.state_dict().items())


def test_meta_network_is_refused(source):
    with torch.device("meta"):
        network = target()
    with pytest.raises(UserError, match="meta device"):
        load_official(network, to_official(source))


# Hub


def test_hub_name_downloads_the_published_file(source, tmp_path, monkeypatch):
    torch.save({"model": to_official(source)}, tmp_path / "internimage_t_1k_224.pth")
    asked = []

    def download(repo, filename, **_):
        asked.append((repo, filename))
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    network = target()
    load_official(network, "internimage_t_1k_224")
    assert asked == [("OpenGVLab/InternImage", "internimage_t_1k_224.pth")]
    assert_same(network, source)


def test_hub_repository_with_shards(source, tmp_path, monkeypatch):
    from huggingface_hub.errors import EntryNotFoundError

    write_shards(source, tmp_path)

    def download(repo, filename, **_):
        assert repo == "OpenGVLab/internimage_g_22kto1k_512"
        if not (tmp_path / filename).exists():
            raise EntryNotFoundError(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    network = target()
    load_official(network, "OpenGVLab/internimage_g_22kto1k_512")
    assert_same(network, source)


def test_offline_names_the_address(monkeypatch):
    def download(repo, filename, **_):
        raise OSError("no connection")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    address = "https://huggingface.co/OpenGVLab/InternImage/resolve/main/internimage_t_1k_224.pth"
    with pytest.raises(UserError, match=address):
        load_official(target(), "internimage_t_1k_224")


def test_local_file_has_priority_over_hub_name(source, tmp_path, monkeypatch):
    torch.save(to_official(source), tmp_path / "internimage_t_1k_224.pth")
    monkeypatch.chdir(tmp_path)
    network = target()
    load_official(network, "internimage_t_1k_224.pth")
    assert_same(network, source)


def test_a_clean_load_says_nothing(source, caplog):
    with caplog.at_level(logging.WARNING):
        load_official(target(), to_official(source))
    assert not caplog.records


def test_reading_files_keeps_its_former_name():
    from src.models import checkpoints
    from src.models.weights import files

    assert checkpoints is files
