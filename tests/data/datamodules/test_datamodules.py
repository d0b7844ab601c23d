"""What all data modules have: a short name, classes, colours and ids."""

import ast
from pathlib import Path

import pytest

import src.data
from src.data import datamodules
from src.data.datamodules import BaseDataModule
from src.errors import UserError

FILES = sorted(Path(datamodules.__file__).parent.glob("*.py"))
NAMES = [
    node.name
    for path in FILES
    for node in ast.parse(path.read_text()).body
    if isinstance(node, ast.ClassDef) and node.name.endswith("DataModule")
]


class Letters(BaseDataModule):
    """A data module of one's own, with nothing but class names."""

    class_names = ["a", "b", "c"]  # noqa: RUF012


def test_every_data_module_is_registered() -> None:
    assert len(NAMES) >= 5
    for name in NAMES:
        assert issubclass(getattr(src.data, name), BaseDataModule)


def test_other_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        src.data.Nothing  # noqa: B018


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("ImageNetDataModule", 1000),
        ("COCODataModule", 80),
        ("ADE20KDataModule", 150),
        ("COCOStuffDataModule", 171),
    ],
)
def test_official_classes_are_known_without_files(name: str, number: int) -> None:
    names = getattr(src.data, name).official_class_names()
    assert len(set(names)) == number


@pytest.mark.parametrize("name", ["ImageNetDataModule", "COCODataModule", "ADE20KDataModule"])
def test_a_subclass_does_not_inherit_official_classes(name: str) -> None:
    subclass = type("Mine", (getattr(src.data, name),), {})
    with pytest.raises(UserError, match="Mine has no classes of its own"):
        subclass.official_class_names()


def test_a_data_module_of_ones_own_has_colours_and_ids() -> None:
    data = Letters(batch_size=1, num_workers=0)
    assert data.num_classes == len(set(data.palette)) == 3
    assert data.category_ids == [0, 1, 2]
    with pytest.raises(UserError, match="Letters has no classes of its own"):
        data.official_class_names()
    with pytest.raises(UserError, match=r"--data\.predict_dir"):
        data.predict_source()
