"""``python -m src demo``: the page and its answers, over loopback."""

import io
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from src.cli import demo_server as demo
from src.cli import main
from src.cli.demo_page import curl_command
from src.cli.demo_server import MAX_BYTES, make_server
from src.export.predictor import ExportedModel
from tests.export.test_result_files import exported, photo


@pytest.fixture(scope="module")
def server_of(tmp_path_factory):
    """Starts a server for a network; all are ended at the end."""
    servers = []

    def start(name):
        _, written = exported(name, tmp_path_factory.mktemp(name))
        server = make_server(ExportedModel(written.paths[0]), score=0.0)
        server.model = written.paths[0]
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


AS_JSON = {"Accept": "application/json"}


def ask(server, method, path, body=None, headers=None):
    connection = HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer, answer.read()


def jpeg():
    file = io.BytesIO()
    Image.fromarray(photo(90, 130)).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(
    "name",
    ["classifier", *(pytest.param(n, marks=pytest.mark.slow) for n in ("upernet", "mask_rcnn"))],
)
def test_an_image_is_answered_with_its_results(name, server_of):
    server = server_of(name)
    answer, page = ask(server, "GET", "/")
    assert answer.status == 200
    assert b"Drop an image here" in page
    network = ExportedModel(server.model)
    title = f"InternImage: {network.task}, {len(network.class_names)} classes"
    assert page.decode().count(title) == 2
    assert b"http" not in page.lower()  # nothing from elsewhere
    answer, content = ask(server, "POST", "/predict", jpeg())
    assert answer.status == 200, content
    text = json.loads(answer.headers["X-Result"])
    assert "class " in text
    assert "%" in text
    assert " %" not in text  # as in Python
    answer, content_json = ask(server, "POST", "/predict", jpeg(), AS_JSON)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert json.loads(answer.headers["X-Result"]) == text
    rows = json.loads(content_json)
    keys = {
        "classification": ["score"],
        "detection": ["score", "x1", "y1", "x2", "y2"],
        "segmentation": ["pixels", "share"],
    }[network.task]
    for row in rows:
        assert [*row] == ["label", "name", *keys]
        assert row["name"] == network.class_names[row["label"]]
    value = keys[-1] if network.task == "segmentation" else "score"
    assert [row[value] for row in rows] == sorted((row[value] for row in rows), reverse=True)
    assert text.endswith(", ".join(f"{row['name']} {row[value]:.1%}" for row in rows))
    drawn = Image.open(io.BytesIO(content))
    assert drawn.format == "PNG"
    given = np.asarray(Image.open(io.BytesIO(jpeg())))
    assert not np.array_equal(np.asarray(drawn), given)
    answer, text = ask(server, "POST", "/predict", b"not an image")
    assert answer.status == 400
    assert text.startswith(b"The image file cannot be read: its content")
    command = f"curl --fail -F file=@photo.jpg -o result.png 127.0.0.1:{server.server_port}/predict"
    assert command in page.decode()
    as_json = curl_command(server.server_port, as_json=True)
    assert f"As JSON: <code>{as_json}</code>" in page.decode()
    answer, text = ask(server, "POST", "/predict", b"not an image", AS_JSON)
    assert answer.status == 400
    assert json.loads(text)["error"].startswith("The image file cannot be read: its content")
    answer, text = ask(server, "POST", "/predict", None, AS_JSON)
    assert json.loads(text) == {"error": f"no image. Send an image file: {command}"}
    for method, path, code in (
        ("GET", "/etc/passwd", 404),
        ("GET", "/predict", 404),
        ("PUT", "/photo.jpg", 405),
        ("POST", "/predict", 400),
    ):
        answer, text = ask(server, method, path)
        assert answer.status == code
        assert text.decode().endswith(f"Send an image file: {command}\n")
    answer, text = ask(server, "POST", "/predict")
    assert (answer.status, text[:8]) == (400, b"no image")
    too_long = {"Content-Length": str(MAX_BYTES + 1)}
    assert ask(server, "POST", "/predict", b"", too_long)[0].status == 413


def form(*parts):
    """Body and headers of a form; parts are headers and content."""
    lines = [b"--aB c\r\n" + head + b"\r\n\r\n" + content + b"\r\n" for head, content in parts]
    kind = 'multipart/form-data; boundary="aB c"'
    return b"".join(lines) + b"--aB c--\r\n", {"Content-Type": kind}


def test_forms_are_accepted(server_of):
    server = server_of("classifier")
    content = jpeg() + b"\r\n--aB\r\n"  # no boundary
    text = (b'Content-Disposition: form-data; name="comment"', b"hello")
    file = (
        b'Content-Disposition: form-data; name="file"; filename="photo.jpg"\r\n'
        b"Content-Type: image/jpeg",
        content,
    )
    _, expected = ask(server, "POST", "/predict", content)
    for parts in ((file,), (text, file, text)):
        answer, drawn = ask(server, "POST", "/predict", *form(*parts))
        assert answer.status == 200, drawn
        assert drawn == expected
    answer, message = ask(server, "POST", "/predict", *form(text))
    assert answer.status == 400
    assert message.startswith(b"The form has no file. Send an image file: curl --fail -F file=@")
    changed = {"Content-Type": "application/x-www-form-urlencoded"}  # as by curl -d @photo.jpg
    answer, message = ask(server, "POST", "/predict", b"not an image", changed)
    assert answer.status == 400
    assert message.startswith(b"The image file cannot be read")
    assert b"curl --fail -F" in message


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_command_works(server_of, tmp_path):
    server = server_of("classifier")
    (tmp_path / "photo.jpg").write_bytes(jpeg())
    command = [*shlex.split(curl_command(server.server_port)), "--silent", "-D", "-"]
    headers = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "X-Result:" in headers.stdout
    assert Image.open(tmp_path / "result.png").format == "PNG"
    command = shlex.split(curl_command(server.server_port, as_json=True))
    rows = json.loads(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True).stdout)
    assert rows[0].keys() == {"label", "name", "score"}


def test_the_page_says_the_highest_score_if_nothing_is_shown():
    class Detector:
        task, class_names, upright = "detection", ["cat"], True

        def __init__(self, *scores):
            self.scores = np.float32(scores)

        def __call__(self, pixels):
            count = len(self.scores)
            boxes = np.tile(np.float32([10, 10, 60, 60]), (count, 1))
            return {"boxes": boxes, "scores": self.scores, "labels": np.zeros(count, np.int64)}

    for scores, line in (
        ((), "0 objects have a score of at least 0.3; the highest score is 0.00. Start demo"),
        ((0.22, 0.1), "the highest score is 0.22. Start demo with a lower --score to draw more."),
        ((0.2999,), "0 objects have a score of at least 0.3; the highest score is 0.2999."),
    ):
        assert line in demo.predict(Detector(*scores), jpeg(), 0.3)[1]
    assert demo.predict(Detector(0.31, 0.1), jpeg(), 0.3)[1] == "1 object: cat 31.0%"
    rows = demo.predict(Detector(0.31, 0.1), jpeg(), 0.3, as_json=True)[0]
    box = {"x1": 10, "y1": 10, "x2": 60, "y2": 60}
    assert json.loads(rows) == [{"label": 0, "name": "cat", "score": pytest.approx(0.31), **box}]
    assert json.loads(demo.predict(Detector(), jpeg(), 0.3, as_json=True)[0]) == []


def test_areas_are_listed_with_their_shares():
    class Segmentor:
        task, class_names, upright = "segmentation", ["cat", "dog", "road"], True
        palette = ()

        def __call__(self, pixels):
            label_map = np.full(pixels.shape[:2], 2)
            label_map[: len(label_map) // 3] = 0
            return {"label_map": label_map}

    assert demo.predict(Segmentor(), jpeg(), 0.3)[1] == "road 66.7%, cat 33.3%"
    rows = json.loads(demo.predict(Segmentor(), jpeg(), 0.3, as_json=True)[0])
    assert rows[0] == {"label": 2, "name": "road", "pixels": 60 * 130, "share": 60 / 90}
    assert [row["label"] for row in rows] == [2, 0]


def test_user_errors_are_one_line(tmp_path, capsys):
    assert main(["demo", "--model", str(tmp_path / "none.onnx")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported/model.onnx").touch()
    assert main(["demo", "--model", str(tmp_path / "exported")]) == 2
    assert f"is a folder; give {tmp_path}/exported/model.onnx" in capsys.readouterr().err
    (tmp_path / "text.onnx").write_text("no file of ONNX")
    assert main(["demo", "--model", str(tmp_path / "text.onnx")]) == 2
    assert "is not an ONNX file that can be run" in capsys.readouterr().err


def test_an_exported_run_is_found_by_its_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 2
    assert "demo needs --model or --name. See" in capsys.readouterr().err
    assert main(["demo", "--name", "first"]) == 2
    expected = (
        "There is no exported/first/model.onnx. No run is exported; write it with python -m src"
        " export --name RUN. Or give another file with --model."
    )
    assert expected in capsys.readouterr().err
    checkpoint = tmp_path / "runs/second/version_0/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    for name, advice in (
        ("second", "Write it with python -m src export --name second. Or give"),
        (
            "secnd",
            "Did you mean the run 'second'? Export it with python -m src export --name s",
        ),
    ):
        assert main(["demo", "--name", name]) == 2
        assert f"There is no exported/{name}/model.onnx. {advice}" in capsys.readouterr().err
    (tmp_path / "exported/first").mkdir(parents=True)
    (tmp_path / "exported/first/model.onnx").touch()
    assert main(["demo", "--name", "frist"]) == 2
    assert "frist/model.onnx. Did you mean 'first'? Or give" in capsys.readouterr().err
    assert main(["demo", "--name", "x"]) == 2
    assert "There is no exported/x/model.onnx. Exported runs are first." in capsys.readouterr().err
    opened = []
    monkeypatch.setattr(demo, "ExportedModel", opened.append)
    monkeypatch.setattr(demo, "make_server", lambda *given: InterruptedServer())
    assert main(["demo", "--name", "first"]) == 0
    assert opened == [Path("exported/first/model.onnx")]


class InterruptedServer:
    """A server that receives Ctrl-C while it waits."""

    server_port = 8000

    def serve_forever(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    def server_close(self):
        pass


def test_ctrl_c_ends_the_server_without_an_error(monkeypatch, capsys):
    monkeypatch.setattr(demo, "ExportedModel", lambda path: None)
    monkeypatch.setattr(demo, "make_server", lambda *given: InterruptedServer())
    assert main(["demo", "--model", "model.onnx"]) == 0
    assert "Interrupted" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("port", "message"),
    [
        ("80000", "--port takes a number from 0 (any free port) to 65535, got 80000.\n"),
        ("-1", "--port takes a number from 0 (any free port) to 65535, got -1.\n"),
        (None, " is in use, perhaps by another demo. Set another --port; 0 is any free one.\n"),
    ],
)
def test_a_port_that_cannot_be_used_is_a_plain_sentence(port, message, monkeypatch, capsys):
    monkeypatch.setattr(demo, "ExportedModel", lambda path: None)
    with socket.create_server(("127.0.0.1", 0)) as other:
        used = str(other.getsockname()[1])
        assert main(["demo", "--model", "model.onnx", "--port", port or used]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {message if port else f'The port {used}{message}'}"


def test_help_and_mistakes_come_before_the_import_of_pytorch(tmp_path):
    (tmp_path / "runs/first/version_0/checkpoints").mkdir(parents=True)
    code = (
        "import sys; from src.cli import main; main(sys.argv[1:]); assert not {} & {*sys.modules}"
    )
    code = code.replace("{}", "{'torch', 'onnxruntime'}")
    for arguments, printed in (
        (["--name", "nope"], "There is no exported/nope/model.onnx."),
        (["--name", "first", "--port", "80000"], "--port takes a number"),
        (["--name", "first"], "Write it with python -m src export --name first."),
    ):
        command = [sys.executable, "-c", code, "demo", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert printed in done.stderr
    command = [sys.executable, "-X", "importtime", "-m", "src", "demo", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "usage: python -m src demo" in done.stdout
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_an_error_does_not_become_the_result_image(server_of, tmp_path):
    server = server_of("classifier")
    (tmp_path / "photo.jpg").write_bytes(b"not an image")
    command = shlex.split(curl_command(server.server_port))
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert failed.returncode != 0
    assert not (tmp_path / "result.png").exists()
