"""Published weights where the hub cannot be reached: an answer at once, and files at hand."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.errors import UserError
from src.models.weights import files


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Session of the hub's client that counts what it is asked, and has no connection."""

    def head(*_: object, **__: object) -> None:
        session.asked += 1
        raise OSError("no route")

    session = SimpleNamespace(asked=0, head=head)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: session)
    return session


def test_files_at_hand_are_used_without_a_connection(
    session: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(repo: str, filename: str, local_files_only: bool) -> str:
        assert local_files_only
        return f"cache/{filename}"

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert files.resolve("internimage_t_1k_224") == Path("cache/internimage_t_1k_224.pth")
    assert session.asked == 1


def test_a_file_that_is_not_at_hand_is_refused(
    session: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="could not be downloaded"):
        files.resolve("internimage_t_1k_224")
    assert session.asked == 1


def test_a_download_is_announced_with_its_size(
    session: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def download(repo: str, filename: str, local_files_only: bool) -> str:
        assert not local_files_only
        cached["file"] = f"cache/{filename}"
        return cached["file"]

    cached: dict[str, str] = {}
    session.head = lambda *_, **__: None
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: cached.get("file"))
    entry = SimpleNamespace(size=120_123_456)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda _: entry)
    for _ in range(2):  # the second time, it is in the cache
        assert files.resolve("internimage_t_1k_224").name == "internimage_t_1k_224.pth"
    assert caplog.messages == [
        "Downloading internimage_t_1k_224.pth (120 MB) from"
        " https://huggingface.co/OpenGVLab/InternImage"
    ]


def test_offline_mode_makes_no_request(
    session: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not files.is_hub_reachable()
    assert session.asked == 0


def test_any_answer_is_a_connection(
    session: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Any] = []
    session.head = lambda *arguments, **keywords: answers.append(keywords["timeout"])
    assert files.is_hub_reachable(seconds=2)
    assert answers == [2]
