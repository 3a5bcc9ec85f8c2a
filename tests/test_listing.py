"""A person's files: what is left out is counted and named, two names for one thing are refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from encbench.errors import DataError
from encbench.listing import list_images, name_uniquely, number_names


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


@pytest.mark.parametrize(
    "name",
    ["._a.png", ".hidden.jpg", "__MACOSX/a.png", "__MACOSX/deep/._a.png", ".git/a.png",
     ".ipynb_checkpoints/a-checkpoint.png", "deep/.ipynb_checkpoints/a.png", "@eaDir/a.jpg"],
)  # fmt: skip
def test_hidden_files_are_left_out_and_named(tmp_path: Path, name: str) -> None:
    found = list_images(touch(tmp_path, "b.PNG", "deep/c.jpeg", name), below=True)
    assert [path.name for path in found.paths] == ["b.PNG", "c.jpeg"]
    assert found.notes == (f"1 hidden files were left out (first: {name})",)


def test_what_is_no_image_file_is_left_out_and_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "b.heic", "c.svg", "notes.txt", "folder.png/x.txt", "real/d.png")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    found = list_images(tmp_path, below=True)
    assert [path.name for path in found.paths] == ["a.png", "d.png"]
    assert found.notes == (
        "3 folders, broken links or devices with a file's name were left out (first: broken.png)",
        "2 files of a format that is not read were left out (first: b.heic)",
        "1 links to folders, which are not followed, were left out (first: link)",
    )
    assert [path.name for path in list_images(tmp_path).paths] == ["a.png"]


def test_names_that_are_not_utf_8_are_listed(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    assert [path.name for path in list_images(touch(tmp_path, name)).paths] == [name]


def test_folders_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        list_images(tmp_path / "none")

    def refuse(path: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot read .*: Permission denied"):
        list_images(tmp_path)


def test_numbers_of_names() -> None:
    names = ["00012.png", "3", "x", "4.jpg", "a5.png", "sample_0001_seed42.png", "9" * 30]
    found, others = number_names(map(Path, names))
    assert {number: path.name for number, path in found.items()} == {
        3: "3", 4: "4.jpg", 12: "00012.png",
    }  # fmt: skip
    assert list(found) == [3, 4, 12]
    assert [path.name for path in others] == ["x", "a5.png", "sample_0001_seed42.png", "9" * 30]


@pytest.mark.parametrize("pair", [("1", "00001"), ("0000.png", "0000.jpg"), ("2.png", "002.webp")])
def test_two_names_for_one_number_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(DataError, match=f"{pair[0]} and {pair[1]} stand for the same item"):
        number_names(map(Path, pair))


def test_two_names_for_one_key_are_refused() -> None:
    with pytest.raises(DataError, match="the same item"):
        name_uniquely([Path("a.png"), Path("b/a.jpg"), Path("a.jpg")], lambda p: (p.parent, p.stem))
