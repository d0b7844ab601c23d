"""The report of images that can be read."""

from collections import Counter

import pytest

from src.data.custom.survey import Survey


@pytest.mark.parametrize(
    ("survey", "text"),
    [
        (Survey(1), "the image can be read"),
        (Survey(2, Counter({"grey": 1})), "all 2 images can be read (1 grey)"),
    ],
)
def test_images_are_counted(survey: Survey, text: str) -> None:
    assert str(survey) == text
