"""Fingerprints of values."""

import pytest

from src.callbacks.fingerprint import fingerprint
from src.errors import UserError


def scaled(factor):
    return lambda x: x * factor


def test_enclosed_variables_count():
    assert fingerprint(scaled(2)) == fingerprint(scaled(2))
    assert fingerprint(scaled(2)) != fingerprint(scaled(3))


def test_a_value_that_contains_itself_is_refused():
    class Transform:
        def __init__(self) -> None:
            self.function = self.apply

        def apply(self) -> None:
            """Nothing."""

    with pytest.raises(UserError, match=r"Transform .* contains itself"):
        fingerprint(Transform())
