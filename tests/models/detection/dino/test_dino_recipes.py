"""The published DINO recipes have the parameters and learning rates of the official code."""

import gzip
import json
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from src import data
from src.data import BaseDataModule
from src.metrics.lvis import LVISMetric
from src.metrics.open_images import OpenImagesMetric
from src.metrics.voc import VOCMetric
from src.models.weights.names import official_names
from src.tasks import DetectionTask

ROOT = Path(__file__).parents[4]
MANIFEST = ROOT / "tests" / "fixtures" / "state_dict_manifests.json.gz"
PARAMETERS = {
    "dino_4scale_internimage_t_1x_coco_layer_wise_lr": 48_736_828,
    "dino_4scale_internimage_l_1x_coco_layer_wise_lr": 241_033_214,
    "dino_4scale_internimage_l_1x_coco_0.1x_backbone_lr": 241_033_214,
    "dino_4scale_internimage_h_objects365_coco_ss": 1_098_725_884,
    "dino_4scale_internimage_g_objects365_coco_ss": 3_082_611_660,
    "dino_4scale_cbinternimage_h_objects365_coco_ss": 2_178_558_124,
    "dino_4scale_cbinternimage_h_objects365_lvis_minival_ss": 2_180_865_889,
    "dino_4scale_cbinternimage_h_objects365_lvis_val_ss": 2_180_865_889,
    "dino_4scale_cbinternimage_h_objects365_openimages_ss": 2_179_628_779,
    "dino_4scale_cbinternimage_h_objects365_voc07": 2_178_434_824,
    "dino_4scale_cbinternimage_h_objects365_voc12": 2_178_434_824,
}
T, L, BACKBONE_L, H, G, CB, MINIVAL, LVIS, OPEN_IMAGES, VOC07, VOC12 = PARAMETERS
DATASETS = ("lvis", "openimages", "voc")
STEPS = {MINIVAL: 80_000, LVIS: 80_000, OPEN_IMAGES: 100_000}
STEMLESS = "patch_embed."


def read(recipe):
    return yaml.safe_load((ROOT / "configs" / "detection" / f"{recipe}.yaml").read_text())


def task_of(recipe):
    """The task with its network on no device."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(DetectionTask, "model")
    model = read(recipe)["model"]
    names = getattr(data, read(recipe)["data"]["class_path"]).official_class_names()
    model["init_args"] |= {"num_classes": len(names), "weights": None}
    task = parser.instantiate_classes(parser.parse_object({"model": model})).model
    with torch.device("meta"):
        task.configure_model()
    return task


@pytest.fixture(scope="module")
def built():
    """Tasks by recipe, each built once."""
    tasks = {}

    def build(recipe):
        if recipe not in tasks:
            tasks[recipe] = task_of(recipe)
        return tasks[recipe]

    return build


@pytest.fixture(scope="module")
def manifest():
    return json.loads(gzip.decompress(MANIFEST.read_bytes()))


def official_shapes(manifest, recipe):
    dataset = next((name for name in DATASETS if f"_{name}" in recipe), "coco")
    entries, entry = manifest["detection"], manifest["detection"][f"{dataset}/{recipe}"]
    extra = entry["extra"]
    if isinstance(extra, str):
        extra = entries[extra.removeprefix("same as detection/")]["extra"]
    if entry["backbone_variant"] != "CB(H,H)":
        backbone = manifest["backbone_detseg"][entry["backbone_variant"]]
        return {f"backbone.{name}": shape for name, shape in backbone.items()} | extra
    backbone = manifest["backbone_detseg"]["H"]
    assist = {f"backbone.cb_modules.0.{name}": shape for name, shape in backbone.items()}
    lead = {
        f"backbone.cb_modules.1.{name}": shape
        for name, shape in backbone.items()
        if not name.startswith(STEMLESS)
    }
    scales = {f"backbone.cb_modules.1.gamma{i}": [320 * 2**i] for i in range(4)}
    return assist | lead | scales | extra


@pytest.mark.parametrize("recipe", PARAMETERS)
def test_names_shapes_and_number_of_parameters(recipe, manifest, built):
    detector = built(recipe).network
    names = official_names(detector)
    assert len(set(names.values())) == len(names)  # a file can be read and written
    shapes = {names[key]: list(value.shape) for key, value in detector.state_dict().items()}
    assert shapes == official_shapes(manifest, recipe)
    assert sum(parameter.numel() for parameter in detector.parameters()) == PARAMETERS[recipe]


def settings(task):
    """Share of the learning rate, and whether it decays, of every parameter."""
    groups = {id(p): group for group in task.parameter_groups() for p in group["params"]}
    return {
        name: (groups[id(p)]["lr_scale"], groups[id(p)].get("weight_decay") != 0)
        for name, p in task.network.named_parameters()
    }


def test_layer_wise_rates_of_t(built):
    found = settings(built(T))
    head = "bbox_head.transformer."
    assert found["backbone.patch_embed.conv1.weight"] == (pytest.approx(0.9**31), True)
    assert found["backbone.levels.0.blocks.0.mlp.fc1.weight"] == (pytest.approx(0.9**30), True)
    assert found["backbone.levels.3.blocks.3.mlp.fc1.weight"] == (pytest.approx(0.9), True)
    assert found[f"{head}level_embeds"] == (pytest.approx(0.9**31), True)
    assert found[f"{head}query_embed.weight"] == (1, True)
    assert found[f"{head}encoder.layers.0.attention.sampling_offsets.weight"] == (1, False)
    assert found["neck.convs.0.gn.weight"] == (1, False)


def test_slow_offsets_and_no_layer_decay_in_the_composite_backbone(built):
    found = settings(built(CB))
    offsets = "bbox_head.transformer.decoder.layers.0.cross_attention.sampling_offsets.weight"
    assert found[offsets] == (pytest.approx(0.001), False)
    assert found["backbone.cb_modules.0.patch_embed.conv1.weight"] == (1, True)
    assert found["backbone.cb_modules.1.levels.0.blocks.0.mlp.fc1.weight"] == (1, True)
    assert found["backbone.cb_modules.1.gamma0"] == (1, False)
    alone = settings(built(H))
    assert alone["backbone.patch_embed.conv1.weight"] == (pytest.approx(0.94**51), True)


def test_a_tenth_for_the_backbone_decays_everything(built):
    found = settings(built(BACKBONE_L))
    shares = {name: share for name, (share, _) in found.items()}
    assert {s for name, s in shares.items() if name.startswith("backbone.")} == {0.1}
    assert {s for name, s in shares.items() if not name.startswith("backbone.")} == {1.0}
    assert all(decays for _, decays in found.values())


@pytest.mark.parametrize("recipe", PARAMETERS)
def test_schedules_limits_and_data(recipe, built):
    config, task = read(recipe), built(recipe)
    optimizer = task.optimization.make_optimizer([torch.nn.Parameter(torch.zeros(1))])
    schedule = task.optimization.make_scheduler(optimizer)
    is_short = recipe in (T, L, BACKBONE_L)
    assert optimizer.defaults["lr"] == (5e-5 if recipe in (VOC07, VOC12) else 1e-4)
    assert optimizer.defaults["weight_decay"] == (0.05 if recipe == BACKBONE_L else 1e-4)
    assert schedule.milestones == ((11,) if is_short else ())
    assert task.optimization.reference_batch_size == (16 if is_short else None)
    assert config["trainer"]["gradient_clip_val"] == 0.1
    assert config["trainer"].get("max_steps") == (None if is_short else STEPS.get(recipe, 20_000))
    head = task.network.bbox_head
    assert head.max_detections == (100 if recipe == T else 300)
    assert head.denoising.num_queries == (100 if is_short else 1000)
    assert head.transformer.num_queries == 900
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BaseDataModule, "data")
    module = parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
    assert module.batch_size == (2 if is_short else 1)
    assert not module._masks


@pytest.mark.parametrize(
    ("recipe", "metric", "sampling"),
    [
        (MINIVAL, LVISMetric, {"_repeat_threshold": 1e-3}),
        (LVIS, LVISMetric, {"_repeat_threshold": 1e-3}),
        (OPEN_IMAGES, OpenImagesMetric, {"_class_aware": True}),
        (VOC07, VOCMetric, {"_repeat": 3}),
        (VOC12, VOCMetric, {"_repeat": 3}),
    ],
)
def test_metric_and_sampling(recipe, metric, sampling, built):
    (found,) = built(recipe).build_metrics().values()
    assert type(found) is metric
    assert getattr(found, "eleven_points", None) == {VOC07: True, VOC12: False}.get(recipe)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BaseDataModule, "data")
    module = parser.instantiate_classes(parser.parse_object({"data": read(recipe)["data"]})).data
    usual = {"_repeat": 1, "_repeat_threshold": None, "_class_aware": False}
    assert {name: getattr(module, name) for name in usual} == usual | sampling
