import pytest

from src.data.classes.class_names import read_class_names, read_class_table, resolve_classes
from src.errors import UserError


def test_labels_are_sorted_folder_names(make_tree):
    classes = resolve_classes(make_tree({"train": {"dog": 1, "ant": 1, "cat": 1}}))
    assert classes.folders == classes.names == ("ant", "cat", "dog")


def test_train_decides_and_val_alone_is_enough(make_tree):
    both = make_tree({"train": {"a": 1, "b": 1}, "val": {"b": 1}}, "both")
    assert resolve_classes(both).folders == ("a", "b")
    assert resolve_classes(make_tree({"val": {"x": 1, "y": 1}}, "val only")).folders == ("x", "y")


def test_synsets_are_shown_in_words_and_namesakes_told_apart(make_tree):
    tree = make_tree({"train": {"n01440764": 1, "n02012849": 1, "n03126707": 1}})
    assert resolve_classes(tree).names == ("tench", "crane (n02012849)", "crane (n03126707)")


def test_folders_that_only_look_like_synsets_keep_their_names(make_tree):
    assert resolve_classes(make_tree({"train": {"n99999999": 1}})).names == ("n99999999",)


def test_imagenet_1k_gives_a_few_folders_their_official_labels(make_tree):
    classes = resolve_classes(make_tree({"val": {"n01443537": 1}}), "imagenet-1k")
    assert len(classes.names) == 1000
    assert classes.folders[1] == "n01443537"
    assert classes.names[1] == "goldfish"


def test_given_names_name_the_sorted_folders(make_tree):
    classes = resolve_classes(make_tree({"train": {"0": 1, "1": 1}}), ["cat", "dog"])
    assert classes.folders == ("0", "1")
    assert classes.names == ("cat", "dog")


def test_a_given_name_may_be_that_of_its_folder(make_tree):
    classes = resolve_classes(make_tree({"train": {"cat": 1, "hot_dog": 1}}), ["cat", "hot dog"])
    assert classes.names == ("cat", "hot dog")


def test_given_folder_names_set_the_label_order(make_tree):
    classes = resolve_classes(make_tree({"train": {"cat": 1, "dog": 1}}), ["dog", "cat", "eel"])
    assert classes.folders == ("dog", "cat", "eel")


def test_names_from_a_file_need_no_data_set(tmp_path):
    (tmp_path / "names.txt").write_text("cat\n\n  dog \n", encoding="utf-8")
    assert resolve_classes(tmp_path / "none", str(tmp_path / "names.txt")).names == ("cat", "dog")


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["cat"], "1 name but .* has 2 class folders, and the folder 'a' is not among"),
        (["b", "aa"], "2 names but .* has 2 class folders, and the folder 'a' is not among"),
        ([], "holds no names"),
        (["a", "a"], "'a' more than once"),
        ("nowhere.txt", "nowhere.txt, which does not exist"),
    ],
)
def test_names_that_do_not_fit_are_refused(make_tree, names, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_classes(make_tree({"train": {"a": 1, "b": 1}}), names)


def test_a_binary_names_file_is_refused(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match=r"names.txt is not UTF-8 text"):
        resolve_classes(tmp_path, str(tmp_path / "names.txt"))


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("sky\n\nroad\tgrey\n", r"line 3 is 'road\\tgrey'"),
        ("0 sky\n1 2 door car\n7 road\n", "line 1 is '0 sky'"),
        ("\nid,name\n2,sky\n3,road\n", "line 2 is 'id,name'"),
        ("id,name,colour\n0,sky,blue\n1,road,grey\n", "line 1 is 'id,name,colour'"),
        ("0 sky 70 130 180\n1 road 128 64 128\n", "line 1 is '0 sky 70 130 180'"),
        ("id name kind\n0 sky stuff\n1 car thing\n", "line 1 is 'id name kind'"),
    ],
)
def test_a_table_that_may_mean_something_else_is_refused(tmp_path, text, line):
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UserError, match=rf"names.txt is a table: {line}. Expected one name per"):
        resolve_classes(tmp_path, str(tmp_path / "names.txt"))


@pytest.mark.parametrize(
    "text",
    [
        "Idx\tName\n1\tsky\n2\ttraffic light\n",
        '0,sky\n1,"traffic light"\n',
        "id, name\n1, traffic light\n0, sky\n",  # in the order of the numbers
        "0 sky\n\n1 traffic light\n",
        "0: sky\n1: traffic light\n",
    ],
)
def test_a_table_of_numbers_and_names(tmp_path, text):
    file = tmp_path / "names.txt"
    file.write_text(text)
    assert resolve_classes(tmp_path, str(file)).names == ("sky", "traffic light")
    first = 1 if "Idx" in text else 0
    assert list(read_class_table(file)) == [first, first + 1]
    assert len(read_class_names(str(file), first=first)) == 2
    with pytest.raises(UserError, match=rf"numbers \(from {1 - first}, without gaps\) and names"):
        read_class_names(str(file), first=1 - first)


@pytest.mark.parametrize(
    "names",
    [["2 door car", "bus"], ["0", "1", "2"], ["1 euro", "2 euro"], ["1st", "3d printer"], ["7 up"]],
)
def test_names_may_begin_with_numbers(tmp_path, names):
    (tmp_path / "names.txt").write_text("\n".join(names))
    assert resolve_classes(tmp_path, str(tmp_path / "names.txt")).names == tuple(names)


def test_without_classes_the_folder_is_named_with_what_it_holds(make_tree, tmp_path):
    with pytest.raises(UserError, match=r"absent does not exist.*prepare toy"):
        resolve_classes(tmp_path / "absent")
    with pytest.raises(UserError, match=r"no class folders .*holds: cat, dog"):
        resolve_classes(make_tree({"cat": {"x": 1}, "dog": {"y": 1}}))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"is a file"):
        resolve_classes(tmp_path / "file")
