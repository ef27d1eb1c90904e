"""Tables of labels, with every mistake that a table can have."""

from __future__ import annotations

import numpy as np
import pytest

from nnunet_transformers.classification.data import split_numbers
from nnunet_transformers.classification.labels import read_labels, read_uncertain


def write(folder, content):
    (folder / "labels.csv").write_text(content)
    return folder / "labels.csv"


@pytest.mark.parametrize(
    "content,message",
    [
        ("file,class\na,1\n", "has no column image, label; it has file, class"),
        ("image,label\na,1\na.nii.gz,2\n", "names a more than once"),
        ("image,label\nz,1\n", "none of the 1 images in .*: the table's first is z, the folder's a"),
        ("image,label\na,1\nb,\nc,\n", "no image or no label in line 3, 4"),
        ("image,label,split\na,1,train\nb,1,vali\n", "must hold train, val, test, got 'vali' in line 3"),
        ("image,label,split\na,1,train\nb,1,\n", "must hold train, val, test, got '' in line 3"),
        # rows that are not whole
        ('image,label\na,"1\nb,0\n', "labels.csv, line 3: unexpected end of data; quote a field"),
        ('image,label\n"a "b" c",1\n', "labels.csv, line 2: .*double a quote in it"),
        ("image,label\na,1\nb\n", "line 3: not as many fields as the header"),
        ("image,label\na,1,2\n", "line 2: not as many fields as the header"),
        ('image,label\n\n\n"a",1,2\n', "line 4: not as many fields as the header"),
        ('image,label\n\na,"x\ny"\nb,\n', "no image or no label in line 5"),
        ("image,label,label\na,1,0\n", "has the column label more than once"),
    ],
)
def test_mistakes(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read_labels(write(tmp_path, content), ["a", "b"])


def test_names(tmp_path):
    rows = "1.2.3.nii.gz,x\nsub/a.png,y\nimagesTr/b_0000.nii.gz,y\nc_0000,x\nother.png,x\n"
    found = read_labels(write(tmp_path, f"image,label\n{rows}"), ["1.2.3", "sub__a", "b", "c_0000"])
    assert found.names == ["1.2.3", "sub__a", "b", "c_0000"]
    assert found.unknown == ["other.png"]
    assert (found.split, found.is_test, found.multi_label) == (None, None, False)
    assert found.classes() == ["x", "y"]
    np.testing.assert_array_equal(found.targets(["x", "y"]), [[1, 0], [0, 1], [0, 1], [1, 0]])
    with pytest.raises(ValueError, match="label 'y' is none of the classes x, z"):
        found.targets(["x", "z"])


def test_what_is_not_used(tmp_path):
    """Columns of two names or none, and commas at the end of lines."""
    content = "image,label,note,note,,\na,1,x,y,,\nb,0,x,y,,, \n"
    assert read_labels(write(tmp_path, content), ["a", "b"]).values == [("1",), ("0",)]


def test_files_in_the_source(tmp_path):
    """Which lead to names that are not like them."""
    table = write(tmp_path, "image,label\na/x.png,1\nx.tif,0\n")
    found = read_labels(table, ["x", "x-1234abcd"], files={"a/x.png": "x-1234abcd", "x.tif": "x"})
    assert found.names == ["x-1234abcd", "x"]


def test_several_labels(tmp_path):
    table = write(tmp_path, "image,edema,nodule,split\na,1,,train\nb,0.0,1,test\n")
    found = read_labels(table, ["a", "b"], ["edema", "nodule"])
    assert found.multi_label
    assert found.classes() == ["edema", "nodule"]
    np.testing.assert_array_equal(found.targets(found.classes()), [[1, np.nan], [0, 1]])
    assert found.is_test.tolist() == [False, True]
    with pytest.raises(
        ValueError, match=r"column nodule of .* -1 \(uncertain\) with --uncertain .*; got '-1' in line 2"
    ):
        read_labels(write(tmp_path, "image,edema,nodule\na,1,-1\n"), ["a"], ["edema", "nodule"])


class TestSplit:
    def read(self, folder, splits, labels="xxxxxxyyyy"):
        rows = [f"{i},{label}{s and ','}{s}" for i, (label, s) in enumerate(zip(labels, splits, strict=True))]
        header = "image,label,split" if splits[0] else "image,label"
        return read_labels(write(folder, "\n".join([header, *rows])), [str(i) for i in range(10)])

    def numbers(self, labelled, share=0.4):
        targets = labelled.targets(labelled.classes())
        return [n.tolist() for n in split_numbers(labelled, targets, share, 0)]

    def test_fixed(self, tmp_path):
        labelled = self.read(tmp_path, ["train"] * 5 + ["val"] * 3 + ["test"] * 2)
        assert self.numbers(labelled) == [[0, 1, 2, 3, 4], [5, 6, 7]]

    @pytest.mark.parametrize("splits", [[""] * 10, ["train"] * 10], ids=["no split", "no val"])
    def test_share_of_each_class(self, tmp_path, splits):
        training, validation = self.numbers(self.read(tmp_path, splits))
        assert sorted(training + validation) == list(range(10))
        assert [sum(n < 6 for n in numbers) for numbers in (training, validation)] == [4, 2]
        assert (training, validation) == tuple(self.numbers(self.read(tmp_path, splits)))

    def test_test_images_are_in_neither(self, tmp_path):
        training, validation = self.numbers(self.read(tmp_path, ["test"] * 2 + ["train"] * 8))
        assert sorted(training + validation) == list(range(2, 10))

    def test_mistakes(self, tmp_path):
        with pytest.raises(ValueError, match="has train for no prepared image"):
            self.numbers(self.read(tmp_path, ["test"] * 10))
        with pytest.raises(ValueError, match="val_share must lie between 0 and 1"):
            self.numbers(self.read(tmp_path, [""] * 10), 0)
        with pytest.raises(ValueError, match=r"cannot draw a share of 0.4 from 10 images evenly .*column split"):
            self.numbers(self.read(tmp_path, [""] * 10, "xxxxxxxxxy"))


@pytest.mark.parametrize(("choice", "expected"), [("zeros", [0, 1]), ("ones", [1, 1]), ("ignore", [np.nan, 1])])
def test_uncertain(choice, expected, tmp_path):
    table = write(tmp_path, "image,edema,nodule\na,-1.0,1\nb,0,1.0\n")
    found = read_labels(table, ["a", "b"], ["edema", "nodule"], uncertain=read_uncertain(choice, ["edema", "nodule"]))
    np.testing.assert_array_equal(found.targets(found.classes()), [expected, [0, 1]])


def test_uncertain_for_each_column(tmp_path):
    choices = tmp_path / "uncertain.json"
    choices.write_text('{"edema": "ones", "nodule": "ignore"}')
    table = write(tmp_path, "image,edema,nodule\na,-1,-1\nb,0,1\n")
    uncertain = read_uncertain(str(choices), ["edema", "nodule"])
    found = read_labels(table, ["a", "b"], ["edema", "nodule"], uncertain=uncertain)
    np.testing.assert_array_equal(found.targets(found.classes()), [[1, np.nan], [0, 1]])
    alone = read_labels(table, ["a", "b"], ["nodule"], uncertain=read_uncertain(str(choices), ["nodule"]))
    assert (alone.names, alone.classes()) == (["b"], ["1"])
    with pytest.raises(ValueError, match=r"uncertain.json must state zeros, ones, ignore for column mass, not None"):
        read_uncertain(str(choices), ["mass"])
    choices.write_text('{"mass": ["ones"]}')
    with pytest.raises(ValueError, match="must state zeros, ones, ignore for column mass, not"):
        read_uncertain(str(choices), ["mass"])
    with pytest.raises(FileNotFoundError, match="--uncertain must be zeros, ones, ignore or a JSON file"):
        read_uncertain("twos", ["mass"])


def test_numbers_and_splits_as_others_write_them(tmp_path):
    table = write(tmp_path, "image,label,split\na,0.0,train\nb,0,validate\nc,1.00,Valid\nd,-2,test\ne,1.5,train\n")
    found = read_labels(table, list("abcde"))
    assert found.classes() == ["-2", "0", "1", "1.5"]
    assert found.split.tolist() == ["train", "val", "val", "test", "train"]
    assert found.targets(["0.0", "1.0", "-2", "1.5"])[2].tolist() == [0, 1, 0, 0]


def test_encoding_names_the_table(tmp_path):
    (tmp_path / "labels.csv").write_bytes("image,label\na,Ödem\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"labels.csv is truncated or not a table of labels: .* save it as CSV in UTF-8"
    ):
        read_labels(tmp_path / "labels.csv", ["a"])


def test_a_file_that_could_not_be_used(tmp_path):
    """Its short name may be another image's, whose label it must not become."""
    table = write(tmp_path, "image,label\np1/scan.png,1\nscan.png,0\n")
    found = read_labels(table, ["scan"], files={"scan.png": "scan", "p1/scan.png": None})
    assert (found.names, found.values, found.unknown) == (["scan"], [("0",)], ["p1/scan.png"])
