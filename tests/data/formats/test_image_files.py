from src.data.formats.image_files import is_image, list_class_folders, list_images


def test_listing_goes_deep_ignores_hidden_and_other_files_and_sorts(tmp_path):
    for name in ("b.JPEG", "a.png", "deep/er/c.webp", ".hidden.jpg", ".folder/d.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [path.removeprefix(f"{tmp_path}/") for path in list_images(tmp_path)]
    assert found == ["a.png", "b.JPEG", "deep/er/c.webp"]
    assert list_class_folders(tmp_path) == ["deep"]
    assert not is_image("._a.jpg")


def test_listing_follows_links(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jpg").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    assert list_class_folders(tmp_path / "root") == ["cat"]
    assert len(list_images(tmp_path / "root")) == 1


def test_links_in_circles_end(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jpg").touch()
    (tmp_path / "cat" / "here").symlink_to(tmp_path / "cat")
    (tmp_path / "cat" / "there").symlink_to(tmp_path / "dog")
    (tmp_path / "dog" / "back").symlink_to(tmp_path / "cat")
    assert len(list_images(tmp_path)) == 2
    assert len(list_images(tmp_path / "dog")) == 2
