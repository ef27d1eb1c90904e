"""Tables of boxes, and every mistake in them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from nnunet_transformers.detection.boxes import read_boxes
from nnunet_transformers.detection.scores import mean_average_precision
from nnunet_transformers.detection.yolo import Boxes

HEADER = "image,x,y,width,height,image_width,image_height,label,split\n"
KNOWN = {"a", "b", "c"}


def table(folder, rows, header=HEADER, name="boxes.csv"):
    file = folder / name
    file.write_text(header + rows)
    return file


def test_csv(tmp_path):
    rows = "a.png,10,20,30,40,100,200,nodule,train\na.png,90,0,30,200,100,200,mass,train\nb.png,,,,,50,50,,validate\n"
    found = read_boxes(table(tmp_path, rows + "z.png,,,,,50,50,,test\n"), KNOWN)
    assert found.images.names == ["a", "b"]
    assert found.images.unknown == ["z.png"]
    assert found.images.split.tolist() == ["train", "val"]
    assert found.classes() == ["mass", "nodule"]
    # the second is clipped to the image
    np.testing.assert_allclose(found.boxes[0], [[0.1, 0.1, 0.4, 0.3], [0.9, 0, 1, 1]])
    assert found.boxes[1].shape == (0, 4)
    assert found.presence().tolist() == [[0, 1], [1, 0]]
    targets = found.targets(["mass", "nodule"])
    assert targets[0][:, 0].tolist() == [1, 0]
    assert targets[1].shape == (0, 5)
    with pytest.raises(ValueError, match="label 'mass' is none of the classes nodule"):
        found.targets(["nodule"])


def test_coco_says_the_same(tmp_path):
    coco = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 100, "height": 200},
            {"id": 8, "file_name": "b.png", "width": 50, "height": 50},
        ],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [10, 20, 30, 40]}],
        "categories": [{"id": 3, "name": "nodule"}],
    }
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(coco))
    found = read_boxes(file, KNOWN)
    other = read_boxes(
        table(tmp_path, "a.png,10,20,30,40,100,200,nodule\nb.png,,,,,50,50,\n", HEADER.replace(",split", "")), KNOWN
    )
    assert found.images == other.images
    assert (found.sizes, found.labels) == (other.sizes, other.labels)
    assert all((a == b).all() for a, b in zip(found.boxes, other.boxes, strict=True))
    coco["annotations"][0]["image_id"] = 9
    file.write_text(json.dumps(coco))
    with pytest.raises(ValueError, match="annotations are of image 9, which is not in images"):
        read_boxes(file, KNOWN)
    file.write_text("{}")
    with pytest.raises(ValueError, match="is truncated or not COCO's JSON"):
        read_boxes(file, KNOWN)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("a.png,1,1,0,5,10,10,,\n", "line 2 has a box without an area inside of the image"),
        ("a.png,11,1,5,5,10,10,,\n", "box without an area"),
        ("a.png,x,1,5,5,10,10,,\n", "column x must hold numbers, got 'x' in .*line 2"),
        ("a.png,1,1,5,5,,10,,\n", "column image_width must hold numbers"),
        ("a.png,1,1,5,5,0,10,,\n", "has an image of 0x10 pixels"),
        ("a.png,1,1,5,5,10,10,,tset\n", "split must be train, val, test, got 'tset'"),
        ("a.png,1,1,5,5,10,10,,\na.png,2,1,5,5,20,10,,\n", "another size or split of a.png than an earlier row"),
        ("a.png,1,1,5,5,10,10,,\na.png,,,,,10,10,,\n", "another row that it has one"),
        ("a.png,,,,,10,10,,\na.png,1,1,5,5,10,10,,\n", "another row that it has one"),
        ("a.png,1,1,5,5,10,10,,train\nb.png,,,,,10,10,,\n", "the split of some images only"),
        (",1,1,5,5,10,10,,\n", "line 2 has no image"),
        ("a.png,1,1,5,5,10,10,mass,\nb.png,1,1,5,5,10,10,,\n", "line 3 has a box without a label, others have one"),
        ("z.png,1,1,5,5,10,10,,\n", "none of the 1 images in .*: the table's first is z.png, the folder's a"),
        ("a.png,1,1,5,5,10,10,,\nx/a.png,1,1,5,5,10,10,,\n", "names a by several names"),
    ],
)
def test_mistakes(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        read_boxes(table(tmp_path, rows), KNOWN)


def test_numbers_as_labels(tmp_path):
    """Which a table of floats has, as soon as an image is without."""
    found = read_boxes(table(tmp_path, "a.png,1,1,5,5,10,10,1.0,\nb.png,,,,,10,10,,\n"), KNOWN)
    assert found.classes() == ["1"]
    # also of detectors that were trained before
    assert [found.targets(classes)[0][:, 0].tolist() for classes in (["1"], ["0.0", "1.0"])] == [[0], [1]]


COCO = {
    "images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9, "split": None}],
    "categories": [{"id": 1, "name": "x"}],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [None, 1, 2, 2]}, "column x must hold numbers, got None in .*annotation 0 of a.png"),
        ({"bbox": []}, r"annotation 0 has the bbox \[\], not x, y, w, h"),
        ({"category_id": 9}, "annotations are of category 9, which is not in categories"),
    ],
)
def test_coco_mistakes(change, message, tmp_path):
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(COCO))
    assert read_boxes(file, KNOWN).images.split is None
    file.write_text(json.dumps({**COCO, "annotations": [{**COCO["annotations"][0], **change}]}))
    with pytest.raises(ValueError, match=message):
        read_boxes(file, KNOWN)


def test_crowds(tmp_path):
    """Groups of objects are no objects, and what is found in them is neither right nor wrong."""
    pytest.importorskip("pycocotools")
    file, crowd = tmp_path / "boxes.json", {"image_id": 1, "category_id": 1, "bbox": [3, 3, 6, 6], "iscrowd": 1}
    file.write_text(json.dumps({**COCO, "annotations": [crowd, *COCO["annotations"]]}))
    found = read_boxes(file, KNOWN)
    assert found.presence().tolist() == [[0, 1]]
    objects, crowds = found.targets(["x"]), found.targets(["x"], crowds=True)
    np.testing.assert_allclose([objects[0][0, 1:], crowds[0][0, 1:]], np.array([[1, 1, 3, 3], [3, 3, 9, 9]]) / 9)
    # the surest box is in the group
    boxes = torch.tensor([[4 / 9, 4 / 9, 6 / 9, 6 / 9], *objects[0][:, 1:].tolist()])
    predicted = [Boxes(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]))]
    assert mean_average_precision(predicted, objects, ["x"], crowds=crowds)["mAP"] == pytest.approx(1)
    assert mean_average_precision(predicted, objects, ["x"])["mAP"] == pytest.approx(0.5)
    file.write_text(json.dumps({**COCO, "annotations": [crowd]}))
    with pytest.raises(ValueError, match=r"all boxes of .* have iscrowd, COCO's mark of groups .* set it to 0"):
        read_boxes(file, KNOWN)


def test_missing_column(tmp_path):
    with pytest.raises(ValueError, match="has no column image_width, image_height; it has image, x, y, width, height"):
        read_boxes(table(tmp_path, "", "image,x,y,width,height\n"), KNOWN)


def test_shapes(tmp_path):
    found = read_boxes(table(tmp_path, "a.png,1,1,5,5,3056,2544,,\n"), KNOWN)
    found.check_shapes({"a": (1, 1, 213, 256)}, is_shrunk=True)
    # of an image that was not shrunk, a symmetric border may be cut off
    found.check_shapes({"a": (1, 1, 2544, 3056)}, is_shrunk=False)
    with pytest.raises(ValueError, match="a was prepared as 213x256 pixels"):
        found.check_shapes({"a": (1, 1, 213, 256)}, is_shrunk=False)
    with pytest.raises(
        ValueError, match="a was prepared as 213x200 pixels, the table has 2544x3056, which has other proportions"
    ):
        found.check_shapes({"a": (1, 1, 213, 200)}, is_shrunk=True)
    with pytest.raises(ValueError, match="a is a volume of 3 slices"):
        found.check_shapes({"a": (1, 3, 213, 256)}, is_shrunk=True)


@pytest.mark.parametrize("kind", ["images", "categories"])
def test_merged_coco_files(tmp_path, kind):
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 2, 2]}],
    }
    content[kind].append({**content[kind][0], "file_name": "b.png", "name": "y"})
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{kind} has the id 1 more than once"):
        read_boxes(tmp_path / "boxes.json", KNOWN)
