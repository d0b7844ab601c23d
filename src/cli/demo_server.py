"""The server of ``python -m src demo``.

The page and the results are served by the standard library on this computer only, one image at a
time; nothing is loaded from elsewhere, and images are not kept. Other programs can send images, as
``curl --fail -F file=@photo.jpg -o result.png -D - 127.0.0.1:8000/predict`` does. The answer is the
drawn image; its header ``X-Result`` is a JSON string of the classes or objects with their scores,
or shares of the image. With the header ``Accept: application/json``, the answer is a JSON list of
them (`src.cli.demo_results.Answer.rows`), and errors are ``{"error": message}``.
"""

from __future__ import annotations

import errno
import io
import json
from email.message import Message
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np

from src.cli.demo_page import curl_command, render_page
from src.cli.demo_results import answer
from src.decoding import decode
from src.errors import UserError, printable
from src.export.predictor import ExportedModel

__all__ = ["MAX_BYTES", "ExportedModel", "make_server", "predict"]

MAX_BYTES = 64 * 2**20
_JSON = "application/json"


def make_server(predictor: ExportedModel, port: int = 0, score: float = 0.3) -> HTTPServer:
    """Server of the page, on this computer only.

    Args:
        predictor: The exported network.
        port: Port, 0 is any.
        score: Minimum score of boxes.

    Raises:
        UserError: If the port is in use or may not be used.
    """

    class Handler(_Handler):
        predict = staticmethod(
            lambda content, as_json: predict(predictor, content, score, as_json=as_json)
        )

    try:
        server = HTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UserError(
            f"{_problem(port, error)} Set another --port; 0 is any free one."
        ) from error
    used = server.server_port
    Handler.page = render_page(predictor.task, len(predictor.class_names), used)
    Handler.usage = f"Send an image file: {curl_command(used)}"
    return server


def _problem(port: int, error: OSError) -> str:
    """Why the port cannot be used."""
    if error.errno == errno.EADDRINUSE:
        return f"The port {port} is in use, perhaps by another demo."
    if error.errno == errno.EACCES:
        return f"The port {port} is for administrators only, as those below 1024 usually are."
    return f"The port {port} cannot be used: {error.strerror or error}."


def predict(
    predictor: ExportedModel, content: bytes, score: float, *, as_json: bool = False
) -> tuple[bytes, str]:
    """Predict an image file.

    Args:
        predictor: The exported network.
        content: The file.
        score: Minimum score of boxes.
        as_json: Whether to return the results as JSON instead of drawing them.

    Returns:
        A PNG file with the results, or a JSON list of them, and a line that describes them.

    Raises:
        UserError: If the image cannot be read.
    """
    image = decode("file", upright=predictor.upright, content=content)
    result = answer(image, predictor(np.array(image)), predictor, score)
    if as_json:
        return f"{json.dumps(result.rows, ensure_ascii=False)}\n".encode(), result.text
    file = io.BytesIO()
    result.draw().save(file, "PNG")
    return file.getvalue(), result.text


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
    """``GET /``: the page. ``POST /predict``: an image file; the answer is a PNG file, or JSON.

    Attributes:
        predict: Function of the content of the file, and of whether the answer is JSON.
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
            content, text = self.predict(_uploaded(self.headers, body), self._wants_json())
        except UserError as error:
            # `curl -d` changes the file, and a form may be any.
            form = kind in ("application/x-www-form-urlencoded", "multipart/form-data")
            advice = f" {self.usage}" if form else ""
            self._send_error(400, printable(str(error)) + advice)
            return
        kind = _JSON if self._wants_json() else "image/png"
        self._send(200, kind, content, {"X-Result": json.dumps(text)})

    def _wants_json(self) -> bool:
        return _JSON in self.headers.get("Accept", "").lower()

    def _refuse(self, code: int, reason: str) -> None:
        self._send_error(code, f"{reason} {self.usage}")
        self.close_connection = True

    def _send_error(self, code: int, message: str) -> None:
        if self._wants_json():
            self._send(code, _JSON, f"{json.dumps({'error': message})}\n".encode())
        else:
            self._send(code, "text/plain; charset=utf-8", f"{message}\n".encode())

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
