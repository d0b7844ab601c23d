"""Model card of a saved model, the ``README.md`` of its folder."""

from __future__ import annotations

from src.hub.parts import ModelParts
from src.models import DCNv4
from src.project import origin


def model_card(model: ModelParts) -> str:
    """Model card, the content of ``README.md``."""
    kinds = {
        "classification": ("image-classification", "names, scores", "logits `(N, classes)`"),
        "detection": (
            "object-detection",
            "names, scores, boxes, masks",
            "a list of detections: boxes, scores, labels, masks",
        ),
        "segmentation": (
            "image-segmentation",
            "names, label_map",
            "`out`: logits `(N, classes, H, W)`",
        ),
    }
    tag, result, output = kinds[model.task]
    millions = sum(p.numel() for p in model.network.parameters()) / 1e6
    names = ", ".join(model.class_names[:20]) + (", ..." if len(model.class_names) > 20 else "")
    settings = "\n".join(
        f"- {name}: {value}" for name, value in model.preprocessing.items() if name != "palette"
    )
    has_dcnv4 = any(isinstance(module, DCNv4) for module in model.network.modules())
    operator = "dcnv4" if has_dcnv4 else "dcnv3"
    return f"""---
pipeline_tag: {tag}
tags:
- internimage
- {operator}
---

# {type(model.network).__name__}, {len(model.class_names)} classes

InternImage ({millions:.1f} M parameters) for {model.task}. Classes: {names}.

## Input

RGB images with values in [0, 1], normalised with mean and standard deviation, float32,
`(N, 3, H, W)`.

{settings}

## Usage

With {origin()}, whose import name is `src`:

```python
from src.hub import Pretrained

model = Pretrained.from_pretrained("THIS FOLDER")
result = model.predict("image.jpg")  # {result}
result.plot().save("prediction.png")
```

`model.network` is the plain `torch.nn.Module`; its output is {output}.
Parameters have the names of the official InternImage code.

## To be completed by the author

Training data and their license, evaluation results, intended use and limitations.
"""
