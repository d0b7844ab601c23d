"""``python -m src demo``: a web page on which an image is dropped and the results are drawn.

The page and the results are served by the standard library on this computer only, one image at a
time; nothing is loaded from elsewhere, and images are not kept. Other programs can send images, as
``curl -F file=@photo.jpg -o result.png -D - 127.0.0.1:8000/predict`` does. The answer is the drawn
image; its header ``X-Result`` is a JSON string of the classes or objects.
"""

from __future__ import annotations

import argparse
import io
import json
import shlex
from collections.abc import Sequence
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from src.cli.demo_page import curl_command, render_page
from src.cli.suggestions import suggest
from src.cli.tool_parser import ToolParser
from src.data.classes.palette import distinct_palette
from src.decoding import decode
from src.errors import UserError, counted, printable, told_apart
from src.export.files import EXPORTED, RESULT_FILE
from src.export.predictor import ExportedModel
from src.stopping import Interrupted
from src.visualization import draw_classes, draw_instances, draw_label_map

MAX_BYTES = 64 * 2**20
_TOP = 5
_PORT = 8000


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command until Ctrl-C.

    Args:
        argv: Arguments after ``demo``.

    Returns:
        Exit code.
    """
    args = _parser().parse_args(argv)
    model = args.model or _exported(args.name)
    server = make_server(ExportedModel(model), args.port, args.score)
    print(f"Open http://127.0.0.1:{server.server_port} and drop an image. Ctrl-C ends it.")
    print(f"Or in a terminal: {curl_command(server.server_port)}")
    try:
        server.serve_forever()
    except (KeyboardInterrupt, Interrupted):
        return 0
    finally:
        server.server_close()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = ToolParser(
        prog="python -m src demo",
        description="Try an exported network in the browser, or in another terminal: "
        f"{curl_command(_PORT)} (-D - shows the classes in the header X-Result)",
    )
    add = parser.add_argument
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--model", help="model.onnx of python -m src export")
    model.add_argument("--name", help=f"name of an exported run: {EXPORTED}/NAME/{RESULT_FILE}")
    add("--port", type=int, default=_PORT, help="port on this computer, 0 is any (%(default)s)")
    add("--score", type=float, default=0.3, help="minimum score of drawn boxes (%(default)s)")
    return parser


def _exported(name: str) -> Path:
    path = EXPORTED / name / RESULT_FILE
    if not path.is_file():
        folders = (other.parent.name for other in EXPORTED.glob(f"*/{RESULT_FILE}"))
        raise UserError(
            f"There is no {path}.{suggest(name, folders)} Write it with python -m src export"
            f" --name {shlex.quote(name)}, or give another file with --model."
        )
    return path


def make_server(predictor: ExportedModel, port: int = 0, score: float = 0.3) -> HTTPServer:
    """Server of the page, on this computer only.

    Args:
        predictor: The exported network.
        port: Port, 0 is any.
        score: Minimum score of drawn boxes.

    Raises:
        UserError: If the port is in use.
    """

    class Handler(_Handler):
        predict = staticmethod(lambda content: predict(predictor, content, score))

    try:
        server = HTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise UserError(f"The port {port} cannot be used ({error}); set another --port.") from error
    used = server.server_port
    Handler.page = render_page(predictor.task, len(predictor.class_names), used)
    Handler.usage = f"Send an image file: {curl_command(used)}"
    return server


def predict(predictor: ExportedModel, content: bytes, score: float) -> tuple[bytes, str]:
    """Predict an image file.

    Args:
        predictor: The exported network.
        content: The file.
        score: Minimum score of drawn boxes.

    Returns:
        A PNG file with the results, and a line that describes them.

    Raises:
        UserError: If the image cannot be read.
    """
    image = decode("file", upright=predictor.upright, content=content)
    found = predictor(np.array(image))
    drawn, text = _DRAW[predictor.task](image, found, predictor, score)
    file = io.BytesIO()
    drawn.save(file, "PNG")
    return file.getvalue(), text


def _classes(
    image: Image.Image, found: dict[str, NDArray[Any]], predictor: ExportedModel, _: float
) -> tuple[Image.Image, str]:
    probabilities = found["probabilities"]
    best = (-probabilities).argsort(kind="stable")[:_TOP]
    shown = [predictor.class_names[label] for label in best]
    drawn = draw_classes(image, shown, probabilities[best].tolist())
    shares = zip(shown, probabilities[best], strict=True)
    return drawn, ", ".join(f"{name} {share:.1%}" for name, share in shares)


def _label_map(
    image: Image.Image, found: dict[str, NDArray[Any]], predictor: ExportedModel, _: float
) -> tuple[Image.Image, str]:
    labels, names = found["label_map"], predictor.class_names
    palette = predictor.palette or distinct_palette(len(names))
    drawn = draw_label_map(image, labels, names, palette)
    return drawn, ", ".join(names[label] for label in np.unique(labels))


def _instances(
    image: Image.Image, found: dict[str, NDArray[Any]], predictor: ExportedModel, score: float
) -> tuple[Image.Image, str]:
    shown = found["scores"] >= score
    boxes, labels = found["boxes"][shown], found["labels"][shown]
    masks: list[NDArray[np.bool_]] = []
    if "masks" in found:
        size = image.height, image.width
        masks = list(predictor.whole_masks(found["masks"][shown], boxes, size))
    names = [predictor.class_names[label] for label in labels]
    drawn = draw_instances(
        image,
        boxes=[[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.tolist()],
        masks=masks,
        names=names,
        scores=found["scores"][shown].tolist(),
        classes=labels.tolist(),
    )
    if names:
        return drawn, f"{counted(len(names), 'object')}: {', '.join(names)}"
    highest = told_apart(float(found["scores"].max(initial=0.0)), score)
    return drawn, (
        f"0 objects have a score of at least {score:g}; the highest score is {highest}. Start demo"
        " with a lower --score to draw more."
    )


_DRAW = {"classification": _classes, "segmentation": _label_map, "detection": _instances}


def _uploaded(headers: Message, content: bytes) -> bytes:
    """The file of a request: its content, or the first file of a form (RFC 7578).

    Args:
        headers: Headers of the request.
        content: Its body.

    Raises:
        UserError: If a form has no file.
    """
    if headers.get_content_type() != "multipart/form-data":
        return content
    boundary = str(headers.get_boundary("")).encode("latin-1", "replace")
    for part in (b"\r\n" + content).split(b"\r\n--" + boundary):
        head, _, file = part.partition(b"\r\n\r\n")
        if b"filename=" in head:
            return file
    raise UserError("The form has no file.")


class _Handler(BaseHTTPRequestHandler):
    """``GET /``: the page. ``POST /predict``: an image file; the answer is a PNG file.

    Attributes:
        predict: Function of the content of the file.
        page: The page.
        usage: How to send an image.
    """

    predict: Any
    page: str
    usage: str

    def do_GET(self) -> None:
        """Send the page."""
        if self.path == "/":
            self._send(200, "text/html; charset=utf-8", self.page.encode())
        else:
            self._refuse(404, "not found.")

    def do_POST(self) -> None:
        """Predict an image."""
        length = self.headers.get("Content-Length", "")
        if self.path != "/predict":
            self._refuse(404, "not found.")
        elif not length.isdecimal() or int(length) == 0:
            self._refuse(400, "no image.")
        elif int(length) > MAX_BYTES:
            self._refuse(413, f"at most {MAX_BYTES} bytes.")
        else:
            self._predict(self.rfile.read(int(length)))

    def do_PUT(self) -> None:
        """Say how to send an image."""
        self._refuse(405, "not by PUT.")

    def _predict(self, body: bytes) -> None:
        kind = self.headers.get_content_type()
        try:
            content, text = self.predict(_uploaded(self.headers, body))
        except UserError as error:
            # `curl -d` changes the file, and a form may be any.
            form = kind in ("application/x-www-form-urlencoded", "multipart/form-data")
            advice = f" {self.usage}" if form else ""
            message = printable(str(error)) + advice
            self._send(400, "text/plain; charset=utf-8", f"{message}\n".encode())
            return
        self._send(200, "image/png", content, {"X-Result": json.dumps(text)})

    def _refuse(self, code: int, reason: str) -> None:
        self._send(code, "text/plain", f"{reason} {self.usage}\n".encode())
        self.close_connection = True

    def _send(
        self, code: int, kind: str, content: bytes, more: dict[str, str] | None = None
    ) -> None:
        self.send_response(code)
        headers = {"Content-Type": kind, "Content-Length": str(len(content))}
        for name, value in (headers | (more or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""
