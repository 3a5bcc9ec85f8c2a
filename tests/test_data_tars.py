"""WebDataset tars: which samples are read, what is left out, and tars that are damaged."""

import gzip
import pickle
import tarfile

import numpy as np
import packed
import pytest
from packed import png, red_pairs, texts_of

from encbench.data import tars
from encbench.data.datasets import load_dataset
from encbench.data.tars import TarMember, expand_braces, expand_files, load_tars
from encbench.errors import DataError, ImageError
from encbench.images import open_image


def test_samples_keep_their_order_and_their_captions(tmp_path):
    data = load_dataset(packed.write_tars(tmp_path / "a", red_pairs(), shard=2))
    assert [image.file_name for image in data.images] == [f"{i:03d}.png" for i in range(5)]
    assert texts_of(data)[2:4] == ["color 1", "the color 1"]
    assert [int(np.asarray(open_image(i))[0, 0, 0]) for i in data.images] == [0, 10, 20, 30, 40]
    assert not data.notes
    member = pickle.loads(pickle.dumps(data.images[3].path))  # as other processes get it
    assert member.read_bytes() == png(30)
    assert str(member) == f"003.png in {tmp_path / 'a' / '001.tar'}"
    folder = load_dataset(f"webdataset:{tmp_path / 'a'}")
    assert (folder.pin, folder.captions) == (data.pin, data.captions)
    (tmp_path / "list.txt").write_text("a/000.tar\na/001.tar\na/002.tar\n")
    assert load_dataset(f"webdataset:{tmp_path / 'list.txt'}").pin == data.pin


def test_a_tar_is_indexed_once_by_its_content(tmp_path, monkeypatch):
    spec = packed.write_tars(tmp_path / "a", red_pairs())
    first = load_tars(spec.partition(":")[2], store=tmp_path / "store")
    (tmp_path / "a").rename(tmp_path / "b")
    monkeypatch.setattr(tars, "_make_index", None)  # the index of these bytes is known
    moved = load_tars(str(tmp_path / "b"), store=tmp_path / "store")
    assert (moved.pin, moved.captions) == (first.pin, first.captions)
    assert moved.images[4].path.read_bytes() == png(40)


def test_what_is_left_out_is_counted_and_the_first_is_named(tmp_path):
    members = [
        ("x/0.jpg", png(1)), ("x/0.txt", b"a dog\n\n"), ("1.png", png(2)), ("2.txt", b"alone"),
        ("._3.png", b""), ("4.png", png(3)), ("4.txt", b"\xff"), ("5.png", png(4)),
        ("5.json", b'{"caption": ["one", "two"], "url": 1}'), ("6.json", b"{}"), ("README", b""),
        ("7.png", png(5)), ("7.txt", b"from the txt"), ("7.json", b'{"text": "from the json"}'),
    ]  # fmt: skip
    path = packed.write_tar(tmp_path / "x.tar", members)
    data = load_tars(str(path))
    assert texts_of(data) == ["a dog", "one", "two", "from the txt"]
    assert sorted(data.notes) == [
        f"1 captions that cannot be read were left out (first: 4.txt in {path})",
        f"1 captions without an image were left out (first: 2.txt in {path})",
        f"1 hidden files were left out (first: ._3.png in {path})",
        f"1 members that are no named file were left out (first: README in {path})",
        f"2 images without a caption were left out (first: 1.png in {path})",
    ]
    assert texts_of(load_dataset(f"webdataset:{path}?caption=json:text")) == ["from the json"]
    with pytest.raises(DataError, match=r"no image with a caption.*\?image=\.\.\.&caption="):
        load_dataset(f"webdataset:{path}?image=webp")


def test_tars_that_cannot_be_read_are_one_line(tmp_path):
    good = packed.write_tar(tmp_path / "good.tar", [("0.png", png(1)), ("0.txt", b"a")])
    data = good.read_bytes()
    for name, content, words in (
        ("cut.tar", data[:700], r"cut\.tar is cut off"),
        ("boundary.tar", data[:2048], r"boundary\.tar is cut off or damaged after 0\.txt"),
        ("middle.tar", data[:1024] + b"x" * 512 + data[1536:], r"damaged after 0\.png"),
        ("packed.tar", gzip.compress(data), r"is compressed; unpack it first"),
        ("empty.tar", b"", r"empty\.tar is cut off or no tar"),
        ("other.tar", b"no tar at all" * 99, r"other\.tar is cut off or no tar"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=words) as caught:
            load_tars(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    data = load_tars(str(good))
    good.write_bytes(good.read_bytes()[:550])
    with pytest.raises(ImageError, match=r"0\.png in .*good\.tar: the tar is shorter"):
        open_image(data.images[0])
    good.unlink()
    with pytest.raises(ImageError, match=r"cannot read the image 0\.png in .*good\.tar: No such"):
        open_image(data.images[0])


def test_long_names_and_links(tmp_path):
    name = "folder/" + "n" * 200 + ".png"
    path = packed.write_tar(tmp_path / "a.tar", [(name, png(7)), (name[:-3] + "txt", b"long")])
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("link.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    data = load_tars(str(path))
    assert [image.file_name for image in data.images] == [name]
    assert data.images[0].path == TarMember(path, name, data.images[0].path.start, len(png(7)))
    assert "1 members that are no named file were left out (first: link.png" in data.notes[0]


def test_names_of_many_files(tmp_path):
    assert expand_braces("a{08..11}b{x,y}") == [
        f"a{n}b{k}" for n in ("08", "09", "10", "11") for k in "xy"
    ]
    assert expand_braces("a{8..10}") == ["a8", "a9", "a10"]
    for name in ("b.tar", "a.tar", "._c.tar", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    found = [tmp_path / "a.tar", tmp_path / "b.tar"]
    assert expand_files(str(tmp_path), ".tar") == found
    assert expand_files(f"{tmp_path}/[ab]*.tar", ".tar") == found
    assert expand_files(f"{tmp_path}/{{b,a}}.tar", ".tar") == found[::-1]
    for text, words in (("{a,e}.tar", r"e\.tar is not there"), ("*.zip", "no file ends with")):
        with pytest.raises(DataError, match=words):
            expand_files(f"{tmp_path}/{text}", ".tar")
