"""The page of ``python -m src demo``."""

from html import escape


def curl_command(port: int, *, as_json: bool = False) -> str:
    """The same as the page in a terminal.

    ``--fail`` keeps the message of an error out of the image file.

    Args:
        port: Port of the server on this computer.
        as_json: Whether the answer is JSON instead of the drawn image.
    """
    if as_json:
        return f"curl -H Accept:application/json -F file=@photo.jpg 127.0.0.1:{port}/predict"
    return f"curl --fail -F file=@photo.jpg -o result.png 127.0.0.1:{port}/predict"


def render_page(task: str, classes: int, port: int) -> str:
    """The page as HTML.

    Args:
        task: Task of the network.
        classes: Number of its classes.
        port: Port of the server on this computer.
    """
    title = f"InternImage: {task}, {classes} {'class' if classes == 1 else 'classes'}"
    page = _PAGE.replace("TITLE", escape(title))
    page = page.replace("JSON_COMMAND", escape(curl_command(port, as_json=True)))
    return page.replace("COMMAND", escape(curl_command(port)))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>TITLE</title>
<style>
body { font: 16px sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
#drop { border: 3px dashed #999; border-radius: 8px; padding: 3rem; text-align: center; }
#drop.over { border-color: #26c; background: #eef4ff; }
#result { max-width: 100%; margin-top: 1rem; }
</style>
</head>
<body>
<h1>TITLE</h1>
<label id="drop">Drop an image here, or click to choose one.
<input id="file" type="file" accept="image/*" hidden></label>
<p id="text" role="status"></p>
<img id="result" alt="" hidden>
<p>In a terminal: <code>COMMAND</code></p>
<p>As JSON: <code>JSON_COMMAND</code></p>
<script>
const drop = document.getElementById("drop");
const text = document.getElementById("text");
const result = document.getElementById("result");
async function send(file) {
  if (!file) return;
  text.textContent = "Running ...";
  const start = performance.now();
  try {
    const answer = await fetch("/predict", { method: "POST", body: file });
    if (!answer.ok) {
      result.hidden = true;
      text.textContent = await answer.text();
      return;
    }
    const seconds = ((performance.now() - start) / 1000).toFixed(1);
    text.textContent = JSON.parse(answer.headers.get("X-Result")) + " (" + seconds + " s)";
    result.src = URL.createObjectURL(await answer.blob());
    result.hidden = false;
  } catch (error) {
    result.hidden = true;
    text.textContent = "The server does not answer.";
  }
}
document.getElementById("file").onchange = event => send(event.target.files[0]);
drop.ondragover = event => { event.preventDefault(); drop.className = "over"; };
drop.ondragleave = () => { drop.className = ""; };
drop.ondrop = event => {
  event.preventDefault();
  drop.className = "";
  send(event.dataTransfer.files[0]);
};
</script>
</body>
</html>
"""
