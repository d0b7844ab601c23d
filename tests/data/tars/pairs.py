"""Members of tars as img2dataset writes them."""

import io
import json
from typing import Any

import numpy as np
from PIL import Image

Members = dict[str, bytes]


def jpeg(number: int, size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def pair(key: str, text: str | None = None, number: int = 0, **facts: Any) -> Members:
    text = f"caption of {key}" if text is None else text
    content = {"caption": text, "key": key, "width": 40, "height": 30, **facts}
    return {
        f"{key}.jpg": jpeg(number),
        f"{key}.txt": text.encode(),
        f"{key}.json": json.dumps(content).encode(),
    }
