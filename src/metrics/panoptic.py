"""Panoptic quality of files in COCO's panoptic format, computed by hotcoco.

Source: Kirillov et al., "Panoptic Segmentation", CVPR 2019 (arXiv 1801.00868). A predicted and a
true segment of one class match above an IoU of 0.5. The quality of a class is the sum of these IoUs
over the number of matches and half of the unmatched segments; the result is the mean over classes.
torchmetrics has the metric too, but does not count a missed segment without predicted pixels.
"""

from __future__ import annotations

from pathlib import Path

from src.errors import UserError


def panoptic_quality(
    predictions: str | Path,
    truth: str | Path,
    *,
    prediction_images: str | Path | None = None,
    truth_images: str | Path | None = None,
) -> dict[str, float]:
    """Compare predicted panoptic segments with the annotated ones.

    Args:
        predictions: ``panoptic.json`` of `predict`.
        truth: Annotation file, such as ``panoptic_val2017.json``. Its images are those that count.
        prediction_images: Folder of the predicted PNGs; default is named as the json.
        truth_images: Folder of the annotated PNGs; default is named as the json.

    Returns:
        Fractions by name: ``PQ``, ``SQ`` (mean IoU of matches) and ``RQ`` (F1 of matching), the
        same of the counted classes with ``_th`` and of the others with ``_st``; -1 if none of these
        classes has a segment.

    Raises:
        UserError: If a file is missing or damaged, the truth has no segments, or hotcoco is not
            installed.
    """
    try:
        from hotcoco.panoptic import PanopticEval
    except ImportError as error:
        raise UserError(
            "Panoptic quality needs hotcoco. Install it with `pip install hotcoco`."
        ) from error
    paths = {"predictions": Path(predictions), "truth": Path(truth)}
    for name, path in paths.items():
        if not path.is_file():
            raise UserError(f"The file {path} ({name}) does not exist; expected a panoptic json.")
    folders = [
        path.with_suffix("") if given is None else Path(given)
        for path, given in zip(paths.values(), (prediction_images, truth_images), strict=True)
    ]
    try:
        evaluation = PanopticEval(
            paths["truth"], paths["predictions"], gt_folder=folders[1], pred_folder=folders[0]
        )
        evaluation.evaluate()
    except (ValueError, KeyError, OSError, RuntimeError) as error:
        raise UserError(f"{predictions} cannot be compared with {truth}: {error}") from error
    found = evaluation.results()
    if found["All"]["pq"] < 0:
        raise UserError(
            f"{truth} has no segments, so there is nothing to compare with; expected annotations "
            "in COCO's panoptic format, such as panoptic_val2017.json."
        )
    return {
        f"{name.upper()}{ending}": float(found[group][name])
        for group, ending in (("All", ""), ("Things", "_th"), ("Stuff", "_st"))
        for name in ("pq", "sq", "rq")
    }
