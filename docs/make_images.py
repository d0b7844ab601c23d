"""Make the images of README and docs: predictions and sampling locations on synthetic scenes.

``python docs/make_images.py --root data/images`` draws training scenes, trains a small network for
each task (about half an hour of two CPU cores; finished runs are kept), draws new scenes, and
writes an image of the first scene that each network predicts correctly.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import distance_transform_edt

from src.cli import main as command
from src.data.toy.ade20k import write_toy_ade20k
from src.data.toy.coco import write_toy_coco
from src.data.toy.imagenet import write_toy_imagenet
from src.data.toy.layout import ToySettings
from src.data.toy.scenes import SHAPES, Scene, draw_scene
from src.hub import Pretrained
from src.inference import Classification, Detection, Prediction, Predictor, Segmentation
from src.models.internimage.backbone import InternImageBackbone
from src.profiling.sampling_locations import sampling_points

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
SCENES = ToySettings(train=60, val=4, predict=1, size=384)
_LONGER = ("--trainer.max_epochs", "24", "--trainer.check_val_every_n_epoch", "6")
TRAINING: dict[str, tuple[Callable[..., bool], list[str]]] = {
    "classification": (write_toy_imagenet, ["--data.image_size", "96"]),
    "detection": (
        write_toy_coco,
        ["--data.train_scales", "[[224,168]]", "--data.eval_scale", "[224,168]", *_LONGER],
    ),
    "segmentation": (
        write_toy_ade20k,
        ["--data.image_scale", "[640,160]", "--data.crop_size", "[160,160]", *_LONGER],
    ),
}
"""Function that draws the data, and settings in addition to the toy recipe, for each task."""
_OVERLAP = 0.8  # intersection over union of a correct object
_COLOURS = ((255, 70, 70), (255, 214, 0), (90, 200, 255))
_GAP = 8  # pixels between two images
_MAX_SCENES = 400


def main() -> None:
    """Train what is missing, and write the images."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder for scenes and runs")
    parser.add_argument("--out", type=Path, default=IMAGES, help="output folder (%(default)s)")
    args = parser.parse_args()
    models = {task: trained(args.root, task) for task in TRAINING}
    args.out.mkdir(parents=True, exist_ok=True)
    for task, model in models.items():
        scene, result = first_correct(model, task)
        save(result.plot(), args.out / f"{task}.png")
        if task == "segmentation":
            save(draw_sampling(model, scene), args.out / "sampling.png")


def trained(root: Path, task: str) -> Pretrained:
    """The network of a task, trained if there is no run of it."""
    write, settings = TRAINING[task]
    run = root / "runs" / task
    if not any(run.glob("version_*/checkpoints/last.ckpt")):
        write(root / task, SCENES)
        recipe = ["--config", str(ROOT / "configs" / "toy" / f"{task}.yaml"), "--name", task]
        places = ["--data.root", str(root / task), "--trainer.default_root_dir", str(run.parent)]
        assert command(["fit", *recipe, *places, *settings]) == 0
    return Pretrained.from_pretrained(run)


def first_correct(model: Pretrained, task: str) -> tuple[Scene, Prediction]:
    """The first of the new scenes that a network predicts correctly."""
    for scene in new_scenes(task):
        result = model.predict(scene.image)
        if is_correct(result, scene):
            return scene, result
    raise SystemExit(f"None of {_MAX_SCENES} scenes is predicted correctly for {task}.")


def new_scenes(task: str) -> Iterator[Scene]:
    """Scenes that are not among the training scenes: one shape, or three different ones."""
    for number in range(_MAX_SCENES):
        rng = np.random.default_rng([2024, list(TRAINING).index(task), number])
        count, size = (1, (448, 448)) if task == "classification" else (3, (420, 560))
        names = [str(name) for name in rng.choice(list(SHAPES), count, replace=False)]
        radius = (0.3, 0.4) if task == "classification" else (0.2, 0.28)
        scene = draw_scene(names, size, rng, radius)
        if len(scene.objects) == count and not _overlap(scene):
            yield scene


def is_correct(result: Prediction, scene: Scene) -> bool:
    """Whether a network has found every object of a scene and nothing else."""
    if isinstance(result, Classification):
        return result.names[0] == scene.objects[0].name and float(result.scores[0]) > 0.8
    if isinstance(result, Detection):
        shown = result.above(0.3)
        masks = shown.masks
        assert masks is not None
        return sorted(shown.names) == sorted(o.name for o in scene.objects) and all(
            _iou(masks[shown.names.index(o.name)].numpy(), o.mask) > _OVERLAP for o in scene.objects
        )
    assert isinstance(result, Segmentation)
    return all(_iou(result.mask(o.name).numpy(), o.mask) > _OVERLAP for o in scene.objects) and (
        set(_visible(result)) == {"background", *(o.name for o in scene.objects)}
    )


def draw_sampling(model: Pretrained, scene: Scene) -> Image.Image:
    """Sampling locations of three pixels, before and after training, side by side."""
    data = Predictor(model.network, model.task, model.class_names, model.preprocessing).data
    sample: Any = data.files_to_predict(["scene"]).sample(Image.fromarray(scene.image), 0)
    assert data.normalization is not None
    image = data.normalization(sample["views"][0])[None]
    backbone = model.network.backbone
    assert isinstance(backbone, InternImageBackbone)
    torch.manual_seed(0)
    fresh = InternImageBackbone(variant="internimage_nano")
    background = ~np.any([o.mask for o in scene.objects], axis=0)
    places = [_middle(mask) for mask in (*(o.mask for o in scene.objects[:2]), background)]
    parts = [_with_points(b, image, scene.image, places) for b in (fresh, backbone)]
    output = Image.new("RGB", (2 * parts[0].width + _GAP, parts[0].height), "white")
    output.paste(parts[0], (0, 0))
    output.paste(parts[1], (parts[0].width + _GAP, 0))
    return output


def _with_points(
    backbone: InternImageBackbone,
    image: torch.Tensor,
    pixels: NDArray[np.uint8],
    places: list[tuple[int, int]],
) -> Image.Image:
    """An image with the sampling locations of pixels in the last layer of the third stage."""
    layer = [s for s in sampling_points(backbone, image) if s.name.startswith("levels.2")][-1]
    rows, columns = layer.positions.shape[:2]
    scale = pixels.shape[1] / image.shape[-1]
    fine = 3  # drawn at three times the size, then reduced
    shown = Image.fromarray(pixels).resize((pixels.shape[1] * fine, pixels.shape[0] * fine))
    drawn = Image.blend(shown.convert("RGB"), Image.new("RGB", shown.size), 0.25).convert("RGBA")
    for place, colour in zip(places, _COLOURS, strict=True):
        row, column = (int(side / scale / layer.stride) for side in place)
        row, column = min(row, rows - 1), min(column, columns - 1)
        canvas = Image.new("RGBA", drawn.size)
        pen = ImageDraw.Draw(canvas)
        x, y = (((side + 0.5) * layer.stride) * scale * fine for side in (column, row))
        points = (layer.in_image()[row, column].flatten(0, 1) + 0.5) * scale * fine
        weights = layer.weights[row, column].flatten()
        order = weights.argsort(descending=True).tolist()  # small dots on top
        for u, v in points.tolist():
            pen.line((x, y, u, v), (*colour, 70), 2)
        for (u, v), weight in zip(points[order].tolist(), weights[order].tolist(), strict=True):
            radius = fine * (1.5 + 6 * weight**0.5)
            box = (u - radius, v - radius, u + radius, v + radius)
            pen.ellipse(box, (*colour, 230), outline=(0, 0, 0, 255), width=2)
        for width, paint in ((5 * fine, (0, 0, 0, 255)), (3 * fine, (255, 255, 255, 255))):
            pen.line((x - 8 * fine, y, x + 8 * fine, y), paint, width)
            pen.line((x, y - 8 * fine, x, y + 8 * fine), paint, width)
        drawn = Image.alpha_composite(drawn, canvas)
    return drawn.convert("RGB").reduce(fine)


def _middle(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Row and column of the pixel of a mask that is furthest from its border."""
    distance = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(distance.argmax()), mask.shape)
    return int(row), int(column)


def _overlap(scene: Scene) -> bool:
    """Whether the boxes of two objects overlap."""
    boxes = [o.box for o in scene.objects]
    return any(
        a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )


def _visible(result: Segmentation) -> list[str]:
    """Names of the classes with at least half a percent of the pixels."""
    least = 0.005 * result.label_map.numel()
    return [name for name in result.names if int(result.mask(name).sum()) >= least]


def _iou(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    return float((mask & truth).sum() / max((mask | truth).sum(), 1))


def save(image: Image.Image, path: Path) -> None:
    """Save a PNG of few colours, which is small."""
    image.quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    print(f"{path}: {image.width}x{image.height}, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
