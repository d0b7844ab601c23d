"""Names of the files that predict writes."""

from src.callbacks.output_names import OutputNames


def test_results_are_named_as_their_pictures_in_the_same_subfolders():
    name = OutputNames(["in/one.jpg", "in/sub/two.png"], root="in")
    assert str(name("in/one.jpg")) == "one.png"
    assert str(name("in/sub/two.png")) == "sub/two.png"


def test_pictures_that_differ_in_their_ending_keep_it():
    name = OutputNames(["in/a.jpg", "in/a.png", "in/sub/a.png"], root="in")
    assert str(name("in/a.jpg")) == "a.jpg.png"
    assert str(name("in/a.png")) == "a.png.png"
    assert str(name("in/sub/a.png")) == "sub/a.png"


def test_a_single_picture_gives_its_name():
    assert str(OutputNames(["in/sub/a.jpg"], root="in/sub/a.jpg")("in/sub/a.jpg")) == "a.png"
    assert str(OutputNames(["in/sub/a.jpg"], root=None)("in/sub/a.jpg")) == "a.png"


def test_pictures_from_elsewhere_keep_their_ending():
    assert str(OutputNames([], root="in")("other/a.jpg")) == "a.jpg.png"
