"""Annotated images have a reasonable size for any shape of the input."""

from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from src.visualization import draw_classes, draw_instances, draw_label_map

SIZES = [(20, 800), (2, 1500), (1, 1), (3000, 4), (640, 480)]


@pytest.mark.parametrize("size", SIZES)
def test_label_maps_of_any_shape_have_a_legend(size):
    label_map = np.zeros((size[1], size[0]), dtype=np.uint8)
    drawn = draw_label_map(Image.new("RGB", size), label_map, ["sky"], [(0, 0, 200)])
    assert max(drawn.size) < 2048
    legend = np.asarray(drawn)[:, -200:]
    assert (legend < 110).all(-1).any()  # dark letters ...
    assert (legend > 240).all(-1).any()  # ... on white


@pytest.mark.parametrize("size", [(480, 480), (768, 1024), (640, 480), (1024, 683)])
def test_the_legend_takes_at_most_a_third_of_the_width_of_a_photo(size):
    label_map = np.zeros((size[1], size[0]), dtype=np.uint8)
    name = "a class with a name that is far too long for a legend"
    drawn = draw_label_map(Image.new("RGB", size), label_map, [name], [(0, 0, 200)])
    assert 1 < drawn.width / size[0] <= 1.34
    is_text = (np.asarray(drawn)[:, size[0] :] < 110).all(-1).any(0)
    assert not is_text[-4:].any()  # the name is shortened


def test_the_legend_of_a_small_photo_is_as_large_as_names_and_rows_allow():
    def field(name, classes=1):
        """Width of the first colour in the legend, which is that of a letter."""
        label_map = np.arange(360)[:, None].repeat(480, 1) * classes // 360
        colours = [(0, 0, 200 - number) for number in range(classes)]
        drawn = draw_label_map(Image.new("RGB", (480, 360)), label_map, [name] * classes, colours)
        assert drawn.size == (640, 360)
        return int((np.asarray(drawn)[:, 482:] == (0, 0, 200)).all(-1).any(0).sum())

    smallest = field("a class with a name that is far too long for a legend")
    assert smallest == field("road", classes=16)
    assert field("road") >= smallest + 3


@pytest.mark.parametrize("size", SIZES)
def test_instances_in_images_of_any_shape_have_labels(size):
    width, height = size
    mask = np.ones((height, width), dtype=bool)
    drawn = draw_instances(
        Image.new("RGB", size), [(0, 0, width, height)], [mask], ["cat"], [0.9], [0]
    )
    assert 360 <= drawn.width <= 1024
    assert drawn.height <= 1024


def test_boxes_in_narrow_images_are_at_the_correct_position():
    drawn = draw_instances(Image.new("RGB", (3, 1500)), [(0, 750, 3, 750)], [], ["cat"], [0.9], [0])
    coloured = (np.asarray(drawn) != 255).any(-1) & (np.asarray(drawn) != 0).any(-1)
    assert coloured[-1].any()
    assert not coloured[:450].any()


@pytest.mark.parametrize("size", [(360, 100), (1000, 100)])
def test_bars_of_classes_end_before_their_percentages(size):
    def bar(probability):
        drawn = np.asarray(draw_classes(Image.new("RGB", size), ["cat"], [probability]))
        columns = np.nonzero((drawn == (178, 208, 244)).all(-1).any(0))[0]
        return drawn[size[1] :], int(columns.max())

    chart, end = bar(1.0)
    text = np.nonzero((chart < 128).all(-1).any(0))[0]  # columns with letters
    percent = text[text > size[0] / 2]
    assert end < percent.min()
    assert bar(0.5)[1] == pytest.approx(end / 2, rel=0.05)


@pytest.mark.parametrize("pair", ["üö", "ßé", "ñÅ", "жф", "αβ"])
def test_letters_of_class_names_are_drawn(pair):
    photo = Image.new("RGB", (360, 90))
    first, second = (np.asarray(draw_classes(photo, [letter], [0.5])) for letter in pair)
    assert (first != second).any()  # letters that a font lacks all look the same


def test_the_legend_leaves_out_classes_of_zero_percent():
    label_map = np.zeros((100, 100), dtype=np.uint8)
    label_map[0, :40] = 1  # 0.4 % of the pixels
    colours = [(0, 0, 200), (200, 0, 0)]
    drawn = np.asarray(
        draw_label_map(Image.new("RGB", (100, 100)), label_map, ["sky", "bird"], colours)
    )
    legend = drawn[:, 360:].reshape(-1, 3).tolist()
    assert [0, 0, 200] in legend
    assert [200, 0, 0] not in legend


@pytest.mark.parametrize("opacity", [1.01, -0.01, float("nan")])
def test_opacity_outside_of_0_to_1_is_refused(opacity):
    image, label_map = Image.new("RGB", (9, 9)), np.zeros((9, 9), dtype=np.uint8)
    with pytest.raises(ValueError, match="from 0 to 1"):
        draw_label_map(image, label_map, ["sky"], [(0, 0, 200)], opacity=opacity)
    with pytest.raises(ValueError, match="from 0 to 1"):
        draw_instances(image, [], [], [], [], [], opacity=opacity)


def drawn_boxes(boxes, classes, size=(640, 480), scores=None):
    """The image, and the boxes with their labels as coloured pixels."""
    scores = scores or [0.9 - 0.05 * i for i in range(len(boxes))]
    blank = Image.new("RGB", size, (128, 128, 128))
    names = [f"class {label}" for label in classes]
    return np.asarray(draw_instances(blank, boxes, [], names, scores, classes))


def colours_of(pixels):
    """Colours of large areas, which are those of labels and lines."""
    found, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    saturated = found.max(1).astype(int) - found.min(1) > 60
    return {
        tuple(c.tolist())
        for c, n in zip(found[saturated], counts[saturated], strict=True)
        if n > 400
    }


def test_instances_of_a_class_have_different_shades_of_its_hue():
    boxes = [(20 + 150 * i, 100, 100, 100) for i in range(4)]
    same, different = drawn_boxes(boxes, [0] * 4), drawn_boxes(boxes, [0, 1, 2, 3])
    shades = colours_of(same)
    assert len(shades) == 4
    assert all(red == max(red, green, blue) for red, green, blue in shades)  # class 0 is red
    assert len({np.argmax(colour) for colour in colours_of(different)}) > 1


def lab(colour):
    """CIE L*a*b* of an sRGB colour from 0 to 1, for the white point D65."""
    values = np.asarray(colour)
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    matrix = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    white = np.array([0.9505, 1.0, 1.089])
    scaled = matrix @ linear / white
    x, y, z = np.where(scaled > 216 / 24389, np.cbrt(scaled), (scaled * 24389 / 27 + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("label", range(12))
def test_the_shades_of_a_class_are_easy_to_tell_apart(label):
    drawn = drawn_boxes([(20 + 150 * i, 100, 100, 100) for i in range(4)], [label] * 4)
    colours = [lab(np.array(colour) / 255) for colour in colours_of(drawn)]
    assert len(colours) == 4
    assert min(np.linalg.norm(a - b) for a, b in combinations(colours, 2)) > 18


def test_labels_of_many_boxes_do_not_hide_the_image():
    boxes = [(20 + 25 * (i % 12), 20 + 25 * (i // 12), 20, 20) for i in range(96)]
    drawn = drawn_boxes(boxes, [0] * 96, (360, 260), [0.96 - 0.01 * i for i in range(96)])
    assert (drawn != 128).any(-1).mean() < 0.4  # boxes are 0.24, and all labels 0.43
    assert (drawn[4:19, 22:90] != 128).any(-1).all()  # the label of the best box
    assert (drawn[200:210, 20:320] != 128).any(-1).all(0).sum() >= 12 * 4  # sides of the last row


def test_the_first_of_equal_scores_has_the_first_shade():
    boxes = [(20, 100, 100, 100), (220, 100, 100, 100)]
    alone = drawn_boxes(boxes[:1], [0], scores=[0.5])
    together = drawn_boxes(boxes, [0, 0], scores=[0.5, 0.5])
    np.testing.assert_array_equal(together[:, :200], alone[:, :200])


def test_labels_of_the_same_place_do_not_cover_each_other():
    alone = drawn_boxes([(200, 200, 200, 150)], [0], scores=[0.9])
    line = (alone != 128).any(-1)
    label = line[:198].sum()  # the label above the box
    boxes = [(200, 200, 200, 150)] * 5
    together = drawn_boxes(boxes, range(5), scores=[0.9] * 5)
    covered = (together != 128).any(-1) & ~line
    assert covered.sum() > 3.5 * label  # four more labels, up to the parts on the lines of the box


def contrast(a, b):
    def luminance(colour):
        values = [c / 255 for c in colour]
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_of_labels_is_readable_on_every_colour():
    for label in range(24):
        drawn = drawn_boxes([(20, 200, 400, 200)] * 3, [label] * 3)
        for colour in colours_of(drawn):
            rows, columns = np.nonzero((drawn == colour).all(-1))
            area = drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            text = max(
                contrast(colour, c)
                for c in ((0, 0, 0), (255, 255, 255))
                if (area == c).all(-1).any()
            )
            assert text >= 4.5
