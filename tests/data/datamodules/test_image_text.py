"""Image-text pairs: batches, loaders, broken images, mistakes."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from src.cli import main
from src.data import ImageTextDataModule
from src.data.datamodules.image_text import PairSource
from src.data.datasets.tokenizing import Tokenizer
from src.data.tars.cache import TarCache
from src.errors import UserError
from tests.data.tars.pairs import pair

Write = Callable[..., Path]


def index(tars: Path | str, out: Path) -> str:
    assert main(["prepare", "index-tars", str(tars), "--out", str(out), "--workers", "1"]) == 0
    return str(out)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    command = ["prepare", "toy", "--layouts", "image_text", "--root", str(root), "--size", "48"]
    assert main([*command, "--train", "2", "--val", "2"]) == 0
    return root / "image_text"


def module(toy: Path, **changes: object) -> ImageTextDataModule:
    settings = {"image_size": 32, "batch_size": 4, "num_workers": 0, "context_length": 12}
    return ImageTextDataModule(
        sources=[PairSource(f"{toy}/train_index")],
        val_sources=[PairSource(f"{toy}/val_index")],
        zero_shot_root=f"{toy}/zero_shot",
        **(settings | changes),
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_are_images_and_tokens(toy: Path, num_workers: int) -> None:
    data = module(toy, num_workers=num_workers)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert sorted(i for batch in batches for i in batch["id"].tolist()) == list(range(32))
    assert batches[0]["image"].shape == (4, 3, 32, 32)
    assert batches[0]["image"].dtype == torch.uint8
    assert batches[0]["text"].shape == (4, 12)
    assert batches[0]["text"].dtype == torch.int64
    again = next(iter(data.train_dataloader()))
    assert torch.equal(again["image"], batches[0]["image"])  # the same random crops
    pairs, zero_shot = (list(loader) for loader in data.val_dataloader())
    assert [i for batch in pairs for i in batch["id"].tolist()] == list(range(8))
    assert len(data.class_names) == 10
    assert sum(len(batch["label"]) for batch in zero_shot) == 20
    assert data.images_in_use == (
        "32 pairs for training, 8 pairs for retrieval, 20 images for zero-shot classification"
    )


def test_captions_describe_the_scene(toy: Path) -> None:
    data = module(toy)
    data.setup("fit")
    tokenizer = Tokenizer("clip", 12)
    reader = data._datasets["train"].sources[0]
    text = reader.read(0, 0).text
    assert text.split()
    sample = data._datasets["train"][0]
    assert torch.equal(sample["text"], tokenizer(text))


def broken(tmp_path: Path, write_tar: Write) -> str:
    members = pair("1", number=1) | pair("2", number=2) | pair("3", number=3)
    members["2.jpg"] = members["2.jpg"][:300]
    write_tar(tmp_path / "tars" / "0.tar", members)
    return index(tmp_path / "tars", tmp_path / "index")


def test_broken_images_are_replaced_and_reported(
    tmp_path: Path, write_tar: Write, caplog: pytest.LogCaptureFixture
) -> None:
    source = PairSource(broken(tmp_path, write_tar))
    data = ImageTextDataModule([source], [source], None, 32, 3, 0)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert sorted(batch["id"].tolist()) == [0, 2, 2]
    batch = data.on_before_batch_transfer(batch, 0)
    assert "broken" not in batch
    (loader,) = data.val_dataloader()
    batch = data.on_before_batch_transfer(next(iter(loader)), 0)
    assert batch["id"].tolist() == [0, 2]
    data.teardown("fit")
    assert f"2 images in tars cannot be read and were skipped: {tmp_path}/tars/0.tar:2.jpg, " in (
        caplog.text
    )


def test_broken_images_can_be_refused(tmp_path: Path, write_tar: Write) -> None:
    source = PairSource(broken(tmp_path, write_tar))
    data = ImageTextDataModule([source], None, None, 32, 3, 0, broken_images="error")
    data.setup("fit")
    with pytest.raises(UserError, match=r"image .*/tars/0\.tar:2\.jpg cannot be read: .*truncated"):
        next(iter(data.train_dataloader()))


def test_remote_tars_are_copied_while_they_are_in_use(tmp_path: Path, write_tar: Write) -> None:
    for number in range(3):
        write_tar(tmp_path / "tars" / f"{number}.tar", pair(f"a{number}") | pair(f"b{number}"))
    source = PairSource(index(f"file://{tmp_path}/tars", tmp_path / "index"))
    cache = {"cache_dir": str(tmp_path / "cache"), "cache_gigabytes": 1.5e-5}
    data = ImageTextDataModule([source], None, None, 32, 6, 0, **cache)
    data.setup("fit")
    assert sorted(next(iter(data.train_dataloader()))["id"].tolist()) == list(range(6))
    sizes = [path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")]
    assert sum(sizes) <= 15_000 * 2
    (tmp_path / "tars" / "0.tar").unlink()
    with pytest.raises(UserError, match="there is no such file"):
        TarCache(tmp_path / "other", 10**9).local(f"file://{tmp_path}/tars/0.tar", 1)


def test_long_and_strange_texts_are_tokenised() -> None:
    tokenizer = Tokenizer("clip", 16)
    for text in ("", "a" * 10_000, "\0\x1b[31m", "字" * 500, "<end_of_text>"):
        tokens = tokenizer(text)
        assert tokens.shape == (16,)
        assert 49407 in tokens


def started(data: ImageTextDataModule) -> None:
    data.setup("fit")
    data.train_dataloader()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": []}, "data.sources accepts"),
        ({"tokenizer": "no such model"}, "data.tokenizer accepts"),
        ({"shuffle_tars": 0}, "data.shuffle_tars accepts"),
        ({"context_length": 1}, "data.context_length accepts"),
        ({"batch_size": 100}, "fewer than one step of 100"),
        ({"zero_shot_root": "missing"}, "does not exist"),
    ],
)
def test_mistakes(toy: Path, changes: dict[str, object], message: str) -> None:
    settings = {"sources": [PairSource(f"{toy}/train_index")], "num_workers": 0} | changes
    with pytest.raises(UserError, match=message):
        started(ImageTextDataModule(**settings))


def test_evaluation_needs_data(toy: Path) -> None:
    data = ImageTextDataModule([PairSource(f"{toy}/train_index")], num_workers=0)
    with pytest.raises(UserError, match="validate needs held-out pairs"):
        data.setup("validate")
    with pytest.raises(UserError, match="a positive number"):
        PairSource("x", weight=0)


def test_a_folder_cannot_bring_a_tokenizer_that_runs_code(tmp_path, monkeypatch):
    pytest.importorskip("open_clip")  # before it sees the stand-in for transformers
    used = []
    tokenizers = SimpleNamespace(
        AutoTokenizer=SimpleNamespace(from_pretrained=lambda *_, **settings: used.append(settings))
    )
    monkeypatch.setitem(sys.modules, "transformers", tokenizers)
    settings = {"hf_tokenizer_name": "any", "tokenizer_kwargs": {"trust_remote_code": True}}
    config = {"model_cfg": {"text_cfg": settings}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"data\.tokenizer accepts .*\(open_clip has no such"):
        Tokenizer(f"local-dir:{tmp_path}", 16).check()
    assert used == []
