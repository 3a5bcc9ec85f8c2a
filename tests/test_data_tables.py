"""Parquet and datasets of the library datasets: columns, splits, and what is refused."""

import json
import pickle

import numpy as np
import packed
import pytest
from packed import png, red_pairs, texts_of
from test_hub import COMMIT, NEXT, REPO, server  # noqa: F401  a fixture

from encbench.data.datasets import load_dataset
from encbench.errors import DataError, DownloadError, ImageError, UsageError
from encbench.images import open_image

datasets = pytest.importorskip("datasets")


def reds(data):
    return [int(np.asarray(open_image(image))[0, 0, 0]) for image in data.images]


def test_rows_keep_their_order_and_their_captions(tmp_path):
    spec = packed.write_parquet(tmp_path / "a", red_pairs(), shard=2)
    data = load_dataset(spec)
    assert reds(data) == [0, 10, 20, 30, 40]
    assert texts_of(data)[2:4] == ["color 1", "the color 1"]
    row = pickle.loads(pickle.dumps(data.images[3].path))  # as other processes get it
    assert row.read_bytes() == png(30)
    assert str(row) == "row 3 of a (train)"
    assert texts_of(load_dataset(f"datasets:{tmp_path / 'a'}")) == texts_of(data)
    again = packed.write_parquet(tmp_path / "b", red_pairs(4), shard=2)
    assert load_dataset(again).pin != data.pin
    saved = datasets.load_dataset("parquet", data_files=str(tmp_path / "a" / "*.parquet"))
    saved["train"].save_to_disk(tmp_path / "saved")
    assert reds(load_dataset(f"datasets:{tmp_path / 'saved'}")) == reds(data)


def test_columns_splits_and_groups_by_option(tmp_path):
    numbers = {"n": [1, 1, 2, 2, 3], "alt": ["a", "b", "", None, "e"], "raw": [png(9)] * 5}
    packed.write_parquet(tmp_path, red_pairs(), shard=5, **numbers)
    spec = f"datasets:{tmp_path}/000.parquet"
    grouped = load_dataset(f"{spec}?caption=alt&group=n")
    assert (texts_of(grouped), reds(grouped)) == (["a", "b", "e"], [0, 40])
    assert grouped.notes == ("1 images without a caption were left out",)
    assert reds(load_dataset(f"{spec}?image=raw&caption=alt")) == [9] * 3
    for option, words in (
        (
            "caption=text",
            r"has no column 'text'; name one with \?caption=COLUMN \(there: 'image'",
        ),
        ("image=alt", "column 'alt' of 000 .train. holds .*not images"),
        ("caption=n", "row 0 of 000 .train.: the caption must be a text or a list of texts, not 1"),
        ("split=test", r"has no split 'test'; add \?split=\.\.\. \(train\)"),
        ("group=image_id", "has no column 'image_id'"),
    ):
        with pytest.raises((DataError, UsageError), match=words) as caught:
            load_dataset(f"{spec}?{option}")
        assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="has no revision"):
        load_dataset(f"datasets:{tmp_path}/000.parquet@main")


def test_a_script_is_never_run(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(DataError, match="comes with a loading script, and no code of a dataset"):
        load_dataset(f"datasets:{folder}")
    assert not (tmp_path / "ran").exists()


def test_tables_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"cannot read .*bad\.parquet"):
        load_dataset(f"datasets:{tmp_path}/bad.parquet")
    with pytest.raises(DataError, match="there is no folder /nowhere"):
        load_dataset("datasets:/nowhere")
    with pytest.raises(DataError, match=r"none\.parquet is not there"):
        load_dataset(f"datasets:{tmp_path}/none.parquet")
    rows = [("0.png", b"", ["a"]), ("1.png", png(1), ["b"])]
    data = load_dataset(packed.write_parquet(tmp_path / "a", rows))
    with pytest.raises(
        ImageError,
        match=r"row 0 of 000 .train.: No such|row 0 of 000 .train.: the row holds no image",
    ):
        open_image(data.images[0])
    assert reds(type(data)("a", "0", data.images[1:], ())) == [1]


def test_a_data_set_of_the_hub_is_pinned_and_fetches_no_code(server, tmp_path):  # noqa: F811
    packed.write_parquet(tmp_path / "a", red_pairs())
    table = (tmp_path / "a" / "000.parquet").read_bytes()
    server.files[COMMIT] = {"README.md": b"# data", "data/a.parquet": table, "run.py": b"raise 1"}
    data = load_dataset(f"datasets:{REPO}")
    assert reds(data) == [0, 10, 20, 30, 40]
    assert not any("run.py" in request for request in server.requests if "resolve" in request)
    server.refs["main"] = NEXT  # the hub goes on; what was resolved stays
    assert load_dataset(f"datasets:{REPO}").pin == data.pin
    lock = json.loads((tmp_path / "own" / "hub-lock.json").read_text())
    assert lock[f"datasets/{REPO}"]["revision"] == COMMIT
    server.files[NEXT] = {"README.md": b"# data", "run.py": b"raise 1"}
    with pytest.raises(DataError, match=r"has no data files .*no script is run"):
        load_dataset(f"datasets:{REPO}@{NEXT}")
    with pytest.raises(DownloadError, match="there is no repository someone/else"):
        load_dataset("datasets:someone/else")
