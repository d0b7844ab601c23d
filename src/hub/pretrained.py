"""Load a model, predict on images, save it in a folder or on the Hugging Face hub.

A folder contains ``config.json`` (network, class names, preprocessing), the weights in
``model.safetensors`` with the official parameter names, and ``README.md``. It can be read by
`Pretrained.from_pretrained`, and its weights also by ``--model.weights FOLDER`` and the official
code. Runs of the command line, and names of published files (``"internimage_t_1k_224"``), can be
used instead of a folder.

Nothing in a folder or a run is executed: only networks of ``src.models`` are built.
"""

from __future__ import annotations

import difflib
import numbers
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload
from urllib.parse import urlsplit

import torch

from src.errors import UserError
from src.file_names import similar_folder, url_of
from src.hub.folders import CONFIG_FILE, WEIGHT_FILE, read_folder, write_folder
from src.hub.parts import ModelParts
from src.hub.published import read_published
from src.hub.runs import read_run
from src.models.weights.files import HUB_FILES, is_hub_reachable, problem
from src.runs import is_run, other_versions, runs_with_checkpoints, with_checkpoints

_LOCAL = ("./", "../", "runs/", "exported/")
"""Beginnings of paths, which are not searched on the hub."""
_SCORES = ("conf", "min_score", "score", "score_threshold", "threshold")
"""Names of the minimum score of detections, here and in other libraries."""

if TYPE_CHECKING:
    from src.inference import ImageSource, Prediction


class Pretrained(ModelParts):
    """A network with its class names, task and preprocessing.

    Example:
        >>> model = Pretrained.from_pretrained("internimage_t_1k_224")  # doctest: +SKIP
        >>> result = model.predict("photo.jpg")  # doctest: +SKIP
        >>> result.names, result.scores  # doctest: +SKIP
        >>> result.plot().save("prediction.png")  # doctest: +SKIP
    """

    def __repr__(self) -> str:
        names = ", ".join(self.class_names[:3]) + (", ..." if len(self.class_names) > 3 else "")
        parameters = sum(p.numel() for p in self.network.parameters()) / 1e6
        return (
            f"Pretrained({type(self.network).__name__} for {self.task}, {parameters:.1f} M"
            f" parameters, {len(self.class_names)} classes: {names})"
        )

    @classmethod
    def from_pretrained(cls, source: str | Path) -> Pretrained:
        """Read a folder, a run, a checkpoint, a hub repository, or a published file.

        Args:
            source: A folder written by `save_pretrained`; the folder of a run
                (``"runs/street/version_0"``, whose best checkpoint is used, or ``"runs/street"``
                for the newest run); a checkpoint (``.ckpt``) in the folder of its run;
                ``"user/repository"``; a name of ``docs/model_zoo.md`` such as
                ``"upernet_internimage_t_512_160k_ade20k"``; or a file of such a name (``.pth``),
                because the name says which network it is of.
                An existing folder or file takes precedence over a name. Names that begin with
                ``runs/``, ``exported/``, ``./`` or ``../`` are not searched on the hub.

        Raises:
            UserError: If the model does not exist or is damaged, or the hub cannot be reached.
        """
        if not isinstance(source, (str, Path)):
            raise UserError(f"from_pretrained takes a path or a name, got {type(source).__name__}.")
        if source == "":
            raise UserError("The path or name of the model is empty.")
        return cls(**vars(_parts(Path(source).expanduser(), str(source))))

    @overload
    def predict(
        self, images: ImageSource, *, batch_size: int = 1, device: str | torch.device | None = None
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        images: list[ImageSource] | list[str] | list[Path] | Iterator[ImageSource],
        *,
        batch_size: int = 1,
        device: str | torch.device | None = None,
    ) -> list[Prediction]: ...

    def predict(
        self,
        images: Any,
        *,
        batch_size: int = 1,
        device: str | torch.device | None = None,
        **unknown: object,
    ) -> Prediction | list[Prediction]:
        """Predict on images, as ``python -m src predict`` does in float32.

        Args:
            images: An image, or an iterable of images: a file, a Pillow image, an RGB array
                ``(H, W, 3)`` or an RGB tensor ``(3, H, W)``; arrays and tensors are uint8, or
                floating-point with values from 0 to 1 (up to 0.001 beyond is clamped). Grey ones,
                ``(H, W)``, ``(H, W, 1)`` or ``(1, H, W)``, become RGB, and alpha, ``(H, W, 4)`` or
                ``(4, H, W)``, is dropped, as those of files. An array or tensor with four axes is a
                list. `src.inference.find_images` lists those of a folder.
            batch_size: Images per forward pass. A detector pads images of different sizes to the
                largest one of the batch, which moves its boxes slightly and can change scores in
                the second decimal; with 1, the default, a result does not depend on other images.
            device: Where to compute, such as ``"cuda"``; the network is moved there. Default: where
                it is.
            unknown: Refused.

        Returns:
            `Classification`, `Detection` or `Segmentation` of ``src.inference``; a list if
            ``images`` is an iterable.

        Raises:
            UserError: If an argument is invalid or unknown, or an image cannot be read, so that a
                list with such an image has no results. To skip it, as the command line does, call
                `predict` for one image at a time and catch the error.
        """
        # Imported here, because tasks and data modules import Lightning, which is slow.
        from src.inference import Predictor, split_batch

        if unknown:
            raise UserError(_unknown_argument(next(iter(unknown)), self.task))
        is_integer = isinstance(batch_size, numbers.Integral) and not isinstance(batch_size, bool)
        if not is_integer or batch_size < 1:
            raise UserError(f"batch_size must be an integer from 1, got {batch_size!r}.")
        listed = split_batch(images)
        if device is None:
            device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        predictor = Predictor(self.network, self.task, self.class_names, self.preprocessing)
        found = predictor.predict([images] if listed is None else listed, batch_size, device)
        return found[0] if listed is None else found

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the folder; existing files with the same names are replaced.

        Returns:
            The folder.
        """
        return write_folder(self, folder)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload to the Hugging Face hub as the user logged in with ``hf auth login``.

        Args:
            repository: ``"user/name"``; created if it does not exist.
            private: Whether a new repository is private.

        Returns:
            URL of the repository.

        Raises:
            UserError: If the upload fails.
        """
        from huggingface_hub import HfApi

        try:
            api = HfApi()
            url = str(api.create_repo(repository, private=private, exist_ok=True))
            with tempfile.TemporaryDirectory() as folder:
                self.save_pretrained(folder)
                api.upload_folder(repo_id=repository, folder_path=folder)
        except UserError:
            raise
        except Exception as error:  # the hub client raises several unrelated classes
            if not is_hub_reachable():
                raise UserError(
                    f"Cannot upload the model to {repository}: there is no connection to"
                    " https://huggingface.co."
                ) from None
            raise UserError(
                f"Cannot upload the model to {repository} ({type(error).__name__}: "
                f"{(str(error).splitlines() or [''])[0][:160]}). Log in with `hf auth login` and"
                " check the name."
            ) from None
        return url


def _unknown_argument(name: str, task: str) -> str:
    """Message about an argument of `predict` that there is not."""
    message = f"predict takes images, batch_size and device, got {name}."
    if name in _SCORES and task == "detection":
        return (
            f"{message} Choose detections by their scores afterwards: result.above(0.5), or"
            " result.plot(score=0.5) for drawings."
        )
    close = difflib.get_close_matches(name, ("images", "batch_size", "device"), n=1)
    return f"{message} Did you mean {close[0]}?" if close else message


def _parts(path: Path, name: str) -> ModelParts:
    if not path.exists() and (url := url_of(path)) is not None:
        raise UserError(_no_address(url))
    if (path / CONFIG_FILE).is_file():
        return read_folder(path)
    if path.suffix == ".ckpt" or is_run(path):
        return read_run(path)
    if path.is_dir():
        names = runs_with_checkpoints(path)
        runs = f"{with_checkpoints('run', path, names[:10])} " if names else ""
        runs += f"The run is {path.parent}. " if is_run(path.parent) else ""
        raise UserError(
            f"{path} is not a saved model. {runs}Expected {CONFIG_FILE} and {WEIGHT_FILE} (export"
            f" with --format {_formats(path)}), or the folder of a run with a checkpoint."
        )
    published = path.name.removesuffix(".pth")
    if published in HUB_FILES and (path.is_file() or path.name == name):
        return read_published(published, path if path.is_file() else None)
    if path.is_file():
        raise UserError(_not_a_model(path))
    if path.suffix == ".pth" and path.name != name:
        raise UserError(f"There is no file {path}.")
    is_local = path.is_absolute() or name.startswith(_LOCAL) or name.count("/") > 1
    if "/" in name and not is_local and not runs_with_checkpoints(path.parent):
        return read_folder(_download(name))
    raise UserError(_no_model(path, name))


def _no_model(path: Path, name: str) -> str:
    """Message about a path or a name of which there is nothing."""
    other_runs, run = runs_with_checkpoints(path.parent), Path("runs") / path.name
    known = with_checkpoints("run", path.parent, other_runs[:10]) if other_runs else ""
    known += other_versions(path)
    message = f"There is no model '{name}'."
    if "/" in name:
        message = _no_folder(path, list_others=not known)
    if is_run(run) and not known:
        export = ", or export it with --format onnx safetensors" if "/" in name else ""
        return f"{message} There is a run {run}: give '{run}'{export}."
    if not known and (meant := _meant(path)) is not None:
        return f"{message} Did you mean {meant}?"
    close = _closest(path.name.removesuffix(".pth"), [*HUB_FILES, *other_runs])
    close = [str(path.parent / name) if name in other_runs else name for name in close]
    hint = f"Did you mean {' or '.join(close)}?" if close else ""
    advice = (
        f"Give the folder of a run, a checkpoint, a folder with {CONFIG_FILE}, a hub repository"
        " (user/name), or a name of docs/model_zoo.md."
    )
    return " ".join(part.strip() for part in (message, hint, known, advice) if part)


def _no_folder(path: Path, *, list_others: bool = True) -> str:
    """Sentence about a path of which there is nothing, and the folders beside it."""
    parent, here = path.parent, Path.cwd()
    from_here = f" here (paths are relative to the current folder, {here.name or here})"
    there = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
    are = "are" if len(there) > 1 else "is"
    others = f"; there {are} {', '.join(there[:10])}" if there and list_others else ""
    return f"There is no folder {path}{'' if path.is_absolute() else from_here}{others}."


def _not_a_model(path: Path) -> str:
    """Message about a file that `Pretrained.from_pretrained` does not read."""
    message, advice = f"from_pretrained does not read the file {path}", "Give"
    if path.suffix == ".onnx":
        advice = f"Run it with `python -m src demo --model {path}`, or with onnxruntime. Give"
    elif path.suffix == ".pth":
        close = difflib.get_close_matches(path.stem, HUB_FILES, n=1)
        name = f"{close[0]}.pth" if close else f"its published name, such as {HUB_FILES[0]}.pth"
        message += ", because its name does not say which network it is of"
        advice = f"If it is a published one (docs/model_zoo.md), rename it to {name}. Else give"
    has_folder = (path.parent / CONFIG_FILE).is_file()
    folder = f"its folder, {path.parent}" if has_folder else "the folder of a run"
    return (
        f"{message}. {advice} {folder}, a checkpoint (.ckpt), a published file (.pth) under"
        f" its own name, or a folder with {CONFIG_FILE} and {WEIGHT_FILE} (export with --format"
        f" {_formats(path.parent)})."
    )


def _no_address(url: str) -> str:
    """Message about a URL given to `Pretrained.from_pretrained`."""
    published = Path(urlsplit(url).path).stem
    name = f"'{published}'" if published in HUB_FILES else "a name of docs/model_zoo.md"
    return (
        f"from_pretrained does not read addresses: {url} is a URL. Give {name} or a hub repository"
        " (user/name), or download the file, keep its name, and give its path."
    )


def _formats(folder: Path) -> str:
    """``--format`` of an export that adds a saved model to the exported files of a folder."""
    names = [path.name for path in folder.glob("*")]
    compiled = any(name.endswith(".aoti.pt2") for name in names)
    program = any(name.endswith(".pt2") and not name.endswith(".aoti.pt2") for name in names)
    onnx = any(name.endswith(".onnx") for name in names)
    there = {"onnx": onnx, "pt2": program, "aoti": compiled, "safetensors": True}
    return " ".join(name for name, is_there in there.items() if is_there)


def _closest(name: str, known: Sequence[str]) -> list[str]:
    """The known name most similar to a misspelt one; several if they tie, none if none is close."""
    close = difflib.get_close_matches(name, known, n=3)
    similar = [difflib.SequenceMatcher(None, other, name).ratio() for other in close]
    return [other for other, ratio in zip(close, similar, strict=True) if ratio == similar[0]]


def _meant(path: Path) -> Path | None:
    """The run or saved model that a misspelt path, or the misspelt name of a run, stands for."""
    for given in (path, Path("runs") / path):
        found = similar_folder(given)
        if found is not None and (is_run(found) or (found / CONFIG_FILE).is_file()):
            return found
    return None


def _download(repository: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        offline = not is_hub_reachable()
        files = [CONFIG_FILE, WEIGHT_FILE]
        return Path(snapshot_download(repository, allow_patterns=files, local_files_only=offline))
    except Exception as error:  # the hub client raises several unrelated classes
        path = Path(repository)
        others, meant = f"{_no_folder(path)} " if path.parent.is_dir() else "", _meant(path)
        hint = f" Did you mean the folder {meant}?" if meant else ""
        raise UserError(
            f"{others}The model {repository} is not cached and could not be"
            f" downloaded from https://huggingface.co/{repository} ({problem(error)}).{hint}"
        ) from None  # without the chain of the client's errors
