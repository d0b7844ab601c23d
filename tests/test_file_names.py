"""Validation of names given by users."""

import os
import shlex
import unicodedata
from pathlib import Path

import pytest

from src.errors import UserError
from src.file_names import check_name, name_of, quoted, shorten, similar_file, similar_folder


@pytest.mark.parametrize("name", ["run", "internimage-t_run2", "a.b", "two words", "猫", "x" * 150])
def test_valid_names_are_accepted(name: str) -> None:
    assert check_name(name, "--name") == name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("a/b", "contains /"),
        ("a/", "contains /"),
        ("/abs", "contains /"),
        ("../x", "contains /"),
        ("a\\b", "contains \\"),
        ("C:x", "contains :"),
        ("a::b", "contains :"),
        ("what?", "contains ?"),
        ("..", "starts with ."),
        (".hidden", "starts with ."),
        ("-rf", "starts with -"),
        ("~", "starts with ~"),
        ("dot.", "ends with a dot"),
        (" a", "starts or ends with a space"),
        ("a\nb", "contains control characters"),
        ("a\0b", "contains control characters"),
        ("a\u202eb", "contains control characters"),  # changes the writing direction
        ("a\udce9", "contains control characters or bytes that are not text"),
        ("x" * 300, "is 300 bytes long, more than 150"),
        ("猫" * 51, "is 153 bytes long, more than 150"),
    ],
)
def test_invalid_names_are_refused(name: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        check_name(name, "--name")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("stems", "name"),
    [
        (["recipe", "fsdp2"], "recipe-fsdp2"),
        ([], "unnamed"),
        ([".hidden"], "hidden"),
        (["-x "], "x"),
        (["a:b\n"], "a_b_"),
        (["..."], "unnamed"),
    ],
)
def test_names_from_file_stems(stems: list[str], name: str) -> None:
    assert name_of(stems, "unnamed") == name
    assert check_name(name_of(["x" * 300, "y" * 300], "unnamed"), "--name")


def test_a_similar_file_of_the_same_kind_is_suggested(tmp_path: Path) -> None:
    for name in ("internimage_t_1k_224.yaml", "internimage_t_1k_225.txt", "last.ckpt"):
        (tmp_path / name).touch()
    recipe = f" Did you mean {tmp_path / 'internimage_t_1k_224.yaml'}?"
    assert similar_file(tmp_path / "internimage_t_1k_225.yaml") == recipe
    assert similar_file(tmp_path / "internimage_t_1k_224.yml") == recipe
    assert similar_file(tmp_path / "other.yaml") == similar_file("gone/last.ckpt") == ""


def test_a_similar_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "runs/first/version_0").mkdir(parents=True)
    (tmp_path / "runs/first/notes").touch()
    for given in ("run/first", "Runs/frist", "runs/first"):
        assert similar_folder(tmp_path / given) == tmp_path / "runs/first"
    assert similar_folder(tmp_path / "run/first/version0") == tmp_path / "runs/first/version_0"
    assert similar_folder(tmp_path / "runs/first/note") is None
    assert similar_folder(tmp_path / "elsewhere/first") is None


def test_shortened_names_stay_unique() -> None:
    names = ["é" * 200 + str(number) for number in range(5)]
    short = {shorten(name, 100) for name in names}
    assert len(short) == 5
    assert all(len(os.fsencode(name)) <= 100 for name in short)
    assert shorten("short", 100) == "short"
    assert len(os.fsencode(shorten("\udce9" * 300, 100))) <= 100


@pytest.mark.parametrize(
    "word", ["Tüten_fotos", unicodedata.normalize("NFD", "Tüten"), "猫/1.jpg", "дом-2", "a=b:c@d"]
)
def test_words_that_a_shell_reads_as_they_are_have_no_quotes(word: str) -> None:
    assert quoted(word) == word


@pytest.mark.parametrize(
    "word", ["", "two words", "it's", "$HOME", "~/x", "a;b", "a&b", "*", "a\u00a0b", "“a”", "[1]"]
)
def test_other_words_are_in_quotes(word: str) -> None:
    assert quoted(word) != word
    assert shlex.split(quoted(word)) == [word]
