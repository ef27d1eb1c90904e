"""A preparation that is interrupted, goes on, and grows."""

from __future__ import annotations

import json
import shutil
import tarfile

import blosc2
import numpy as np
import pytest
import SimpleITK as sitk
from typer.testing import CliRunner

from nnunet_transformers import cli
from nnunet_transformers._workers import WorkerDied
from nnunet_transformers.pretraining.data import PreparedImages, folder_state, read_index
from nnunet_transformers.pretraining.data.cases import find_cases
from nnunet_transformers.pretraining.data.manifest import MANIFEST, Manifest, read_lines
from nnunet_transformers.pretraining.data.names import known_name
from nnunet_transformers.pretraining.data.prepare import prepare, prepare_folder

NUMBER = 6


def write_picture(path, seed=0, size=(16, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, size, dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels), str(path))


def write_volume(path, seed=0, size=(12, 16, 16), kind=np.float32):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(seed).normal(100, 20, size).astype(kind)
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))


@pytest.fixture(params=["pictures", "volumes"])
def source(request, tmp_path):
    write, ending = (write_picture, ".png") if request.param == "pictures" else (write_volume, ".nii.gz")
    for number in range(NUMBER):
        write(tmp_path / "raw" / f"image_{number}{ending}", number)
    return tmp_path / "raw"


class Killed(BaseException):
    """Ends a run in its middle, as a signal does."""


class Interrupted:
    """Runs the work here, until a number of results."""

    def __init__(self, results):
        self.left = results

    def run(self, function, items):
        for item in items:
            if not self.left:
                raise Killed
            self.left -= 1
            yield item, function(item)


class Counting(Interrupted):
    """Counts the work."""

    def __init__(self):
        super().__init__(-1)

    @property
    def done(self):
        return -1 - self.left


def voxels(folder):
    images = PreparedImages(folder)
    return {name: images.read(name, (0, 0, 0), images.shapes[name][1:]).numpy() for name in images.names}


@pytest.mark.parametrize("results", [0, 2, NUMBER, NUMBER + 1, 2 * NUMBER - 1, 2 * NUMBER])
def test_goes_on_where_it_was(source, tmp_path, results, monkeypatch):
    monkeypatch.setattr(folder_state, "COMMIT_EVERY", 0)
    prepare(source, tmp_path / "whole")
    if results < 2 * NUMBER:
        with pytest.raises(Killed):
            prepare(source, tmp_path / "prepared", engine=Interrupted(results))
        with pytest.raises(FileNotFoundError, match=r"was interrupted; run its command again|holds no prepared images"):
            read_index(tmp_path / "prepared")
    engine = Counting()
    prepare(source, tmp_path / "prepared", engine=engine)
    assert engine.done == 2 * NUMBER - (results if results < 2 * NUMBER else 0)
    whole, resumed = voxels(tmp_path / "whole"), voxels(tmp_path / "prepared")
    assert list(whole) == list(resumed) and len(whole) == NUMBER
    for name, image in whole.items():
        np.testing.assert_array_equal(image, resumed[name])
    again = Counting()
    prepare(source, tmp_path / "prepared", engine=again)
    assert again.done == 0


def test_what_a_kill_leaves_is_written_over(source, tmp_path):
    prepare(source, tmp_path / "whole")
    folder = tmp_path / "prepared"
    with pytest.raises(Killed):
        prepare(source, folder, engine=Interrupted(NUMBER + 2))
    # half a line, and an image in the shard without a line
    with open(folder / MANIFEST, "ab") as file:
        file.write(b'{"stored": "image_5", "sha')
    for shard in folder.glob("*.tar"):
        with open(shard, "ab") as file:
            file.write(b"x" * 700)
    prepare(source, folder)
    lines = [json.loads(line) for line in (folder / MANIFEST).read_text().splitlines()]
    assert sorted(line["stored"] for line in lines if "stored" in line) == [f"image_{n}" for n in range(NUMBER)]
    for name, image in voxels(tmp_path / "whole").items():
        np.testing.assert_array_equal(image, voxels(folder)[name])
    for shard in folder.glob("*.tar"):
        with tarfile.open(shard) as tar:
            assert sorted(tar.getnames()) == [f"image_{n}.b2nd" for n in range(NUMBER)]


def test_added_images_are_added(source, tmp_path):
    prepare(source, tmp_path / "prepared")
    before, plans = voxels(tmp_path / "prepared"), read_index(tmp_path / "prepared").plans
    write, ending = (write_picture, ".png") if (source / "image_0.png").exists() else (write_volume, ".nii.gz")
    write(source / "sub" / f"new{ending}", 9)
    engine = Counting()
    summary = prepare_folder(source, tmp_path / "prepared", engine=engine)
    assert (engine.done, summary.added, len(summary.stored)) == (1, 1, NUMBER + 1)
    after = voxels(tmp_path / "prepared")
    assert set(after) - set(before) == {"sub__new"}
    assert all((after[name] == image).all() for name, image in before.items())
    assert read_index(tmp_path / "prepared").plans == plans
    # a file that has changed is prepared again, under its name
    write(source / f"image_0{ending}", 11, (16, 24, 24)[-2 if ending == ".png" else -3 :])
    engine = Counting()
    prepare(source, tmp_path / "prepared", engine=engine)
    assert engine.done == 1
    assert voxels(tmp_path / "prepared")["image_0"].shape[-1] == 24


def test_folder_that_has_moved(source, tmp_path):
    prepare(source, tmp_path / "prepared")
    moved = source.rename(tmp_path / "moved")
    engine = Counting()
    prepare(moved, tmp_path / "prepared", engine=engine)
    assert engine.done == 0
    first = sorted(moved.iterdir())[0]
    (tmp_path / "other").mkdir()
    content = sorted(moved.iterdir())[1].read_bytes() + b"longer"
    (tmp_path / "other" / first.name).write_bytes(content)
    with pytest.raises(ValueError, match=r"holds an image of image_0\.\w.* already"):
        prepare(tmp_path / "other", tmp_path / "prepared")


def test_other_options(source, tmp_path):
    prepare(source, tmp_path / "prepared")
    with pytest.raises(ValueError, match=r"was prepared with other options \(spacing, normalization\): give the same"):
        prepare(source, tmp_path / "prepared", spacing=(2, 2, 2), normalization="nonorm")
    # nothing is stored yet: begins anew
    with pytest.raises(Killed):
        prepare(source, tmp_path / "second", engine=Interrupted(2))
    prepare(source, tmp_path / "second", normalization="nonorm")
    assert read_index(tmp_path / "second").normalization == ("NoNormalization",)


def test_earlier_versions_are_not_added_to(source, tmp_path):
    shutil.copytree("tests/data/format_1/prepared", tmp_path / "prepared")
    with pytest.raises(FileExistsError, match="by an earlier version"):
        prepare(source, tmp_path / "prepared")


class TestManifest:
    def test_torn_line(self, tmp_path):
        manifest = Manifest(tmp_path)
        manifest.add({"stored": "a"})
        manifest.commit()
        with open(tmp_path / MANIFEST, "ab") as file:
            file.write(b"x" * 200_000)
        assert list(read_lines(tmp_path)) == [{"stored": "a"}]
        manifest = Manifest(tmp_path)
        manifest.add({"stored": "b"})
        manifest.commit()
        assert list(read_lines(tmp_path)) == [{"stored": "a"}, {"stored": "b"}]

    @pytest.mark.parametrize("line", ["[]", "{", "\0\0\0"])
    def test_damaged(self, line, tmp_path):
        (tmp_path / MANIFEST).write_text(f'{{"stored": "a"}}\n{line}\n{{"stored": "b"}}\n')
        with pytest.raises(ValueError, match=r"manifest\.jsonl is truncated or not a manifest .* in line 2"):
            list(read_lines(tmp_path))


class TestSummary:
    def test_every_file_counts(self, tmp_path):
        folder = tmp_path / "raw"
        for number in range(3):
            write_picture(folder / "sub" / f"{number}.PNG", number)
        write_picture(folder / "labels" / "0.png")
        (folder / "broken.png").write_bytes(b"\x89PNG")
        (folder / "notes.txt").write_text("notes")
        (folder / "table.csv").write_text("a")
        (folder / ".hidden.png").write_text("")
        (folder / "gone.png").symlink_to(tmp_path / "nothing")
        (folder / "again").symlink_to(folder / "sub")
        result = CliRunner().invoke(cli.app, ["pretrain", "prepare", str(folder), str(tmp_path / "prepared")])
        assert result.exit_code == 0, result.output
        lines = result.output.splitlines()
        assert lines[-2] == "10 files in the source: 3 stored, 1 skipped, 0 left out, 6 ignored"
        assert lines[-1].endswith("prepared: 3 images, 1 skipped, 0 left out for validation")
        for text in (
            "skipped broken: cannot be read: ",
            "ignored 1 files, in a folder of label maps by its name: labels/0.png",
            "ignored 1 files, no image (.txt): notes.txt",
            "ignored 1 files, hidden: .hidden.png",
            "ignored 1 files, a link to nothing: gone.png",
            "ignored 1 files, a link to a folder that is read already: ",
        ):
            assert text in result.output, result.output
        lines = list(read_lines(tmp_path / "prepared"))
        assert sum("ignored" in line for line in lines) == 6

    def test_prepared_folder_in_the_source(self, source, monkeypatch):
        monkeypatch.chdir(source)
        for _ in range(2):
            CliRunner().invoke(cli.app, ["pretrain", "prepare", ".", "prepared"])
        found = find_cases(source)
        assert len(found.cases) == NUMBER
        assert found.ignored == {"prepared": "a prepared folder"}

    def test_a_killed_process_is_named(self, source, tmp_path):
        class Deadly(Counting):
            def run(self, function, items):
                for item in items:
                    yield item, WorkerDied() if item.name == "image_1" else function(item)

        summary = prepare_folder(source, tmp_path / "prepared", engine=Deadly())
        assert [case.name for case in summary.skipped] == ["image_1"]
        assert any("killed the process that read it" in line for line in summary.lines())


def test_names_stay(tmp_path):
    write_picture(tmp_path / "raw" / "x.png")
    prepare(tmp_path / "raw", tmp_path / "prepared")
    write_picture(tmp_path / "raw" / "x.bmp", 1)
    stored, _ = prepare(tmp_path / "raw", tmp_path / "prepared")
    names = {case.key: case.name for case in stored}
    assert names["x.png"] == "x" and names["x.bmp"].startswith("x-")
    assert {case.key: case.name for case in find_cases(tmp_path / "raw", known=names).cases} == names


def test_shards_are_nnunets_files_in_a_tar(tmp_path, monkeypatch):
    from nnunet_transformers.pretraining.data import image_store

    monkeypatch.setattr(image_store, "SHARD_BYTES", 2000)
    for number in range(8):
        write_picture(tmp_path / "raw" / f"{number}.png", number, (40, 40))
    prepare(tmp_path / "raw", tmp_path / "prepared", normalization="nonorm")
    shards = sorted(path.name for path in (tmp_path / "prepared").glob("*.tar"))
    assert len(shards) > 2
    found = voxels(tmp_path / "prepared")
    for shard in shards:
        with tarfile.open(tmp_path / "prepared" / shard) as tar:
            tar.extractall(tmp_path / "unpacked", filter="data")
    for number in range(8):
        image = blosc2.open(str(tmp_path / "unpacked" / f"{number}.b2nd"))[:]
        assert image.dtype == np.uint8
        original = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "raw" / f"{number}.png")))
        np.testing.assert_array_equal(found[str(number)][0, 0], original.astype(np.float32))


def test_another_source_with_files_of_the_same_names_and_sizes(tmp_path):
    for seed, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        pixels = np.random.default_rng(seed).integers(0, 255, (20, 30), dtype=np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(pixels), str(tmp_path / folder / "001.bmp"))
    prepare(tmp_path / "a", tmp_path / "prepared", patch_size=(16, 16))
    with pytest.raises(ValueError, match=r"holds an image of 001\.bmp in .*another one of that name"):
        prepare(tmp_path / "b", tmp_path / "prepared", patch_size=(16, 16))
    (tmp_path / "link").symlink_to(tmp_path / "b")
    with pytest.raises(ValueError, match="another one of that name"):
        prepare(tmp_path / "link", tmp_path / "prepared", patch_size=(16, 16))
    # a copy is the same
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    assert len(prepare(tmp_path / "copy", tmp_path / "prepared", patch_size=(16, 16))[0]) == 1


def test_the_second_channel_of_another_source(tmp_path):
    described = {"channel_names": {"0": "A", "1": "B"}, "labels": {}, "numTraining": 1, "file_ending": ".bmp"}
    for seed, folder in enumerate(("a", "b")):
        write_picture(tmp_path / folder / "imagesTr" / "x_0000.bmp", 5)
        write_picture(tmp_path / folder / "imagesTr" / "x_0001.bmp", seed)
        (tmp_path / folder / "dataset.json").write_text(json.dumps(described))
    stored, _ = prepare(tmp_path / "a", tmp_path / "prepared", patch_size=(16, 16))
    assert stored[0].shape[0] == 2
    with pytest.raises(ValueError, match="another one of that name"):
        prepare(tmp_path / "b", tmp_path / "prepared", patch_size=(16, 16))


def test_skipped_images_of_a_mixed_folder_have_no_short_name(tmp_path):
    """A table's row on one of them leads to no other image of its name."""
    source, output = tmp_path / "source", tmp_path / "prepared"
    write_picture(source / "1.png")
    (source / "a").mkdir()
    (source / "a" / "1.png").write_bytes(b"garbage")
    sitk.WriteImage(
        sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(12, 14, 16))), str(source / "v.nii.gz")
    )
    prepare(source, output, patch_size=(16, 16, 16))
    images = PreparedImages(output / "2d")
    assert images.files == {"1.png": "1", "a/1.png": None}
    assert known_name("a/1.png", images.names, images.files) is None


def test_an_image_of_a_mixed_folder_that_became_unusable(tmp_path):
    """It leaves the index of its part, whose place in a shard others take."""
    source, output = tmp_path / "source", tmp_path / "prepared"
    source.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 255, (20, 30), dtype=np.uint8)
        sitk.WriteImage(sitk.GetImageFromArray(pixels), str(source / f"p{number}.png"))
    sitk.WriteImage(sitk.GetImageFromArray(rng.normal(size=(12, 14, 16))), str(source / "v.nii.gz"))
    prepare(source, output, patch_size=(16, 16, 16))
    (source / "p2.png").write_bytes(b"garbage")
    for added in ((), ("p9.png",)):
        for name in added:
            pixels = rng.integers(0, 255, (40, 50), dtype=np.uint8)
            sitk.WriteImage(sitk.GetImageFromArray(pixels), str(source / name))
        prepare(source, output, patch_size=(16, 16, 16))
        images = PreparedImages(output / "2d")
        assert images.names == sorted({"p0", "p1", *(n[:2] for n in added)})
        assert images.files["p2.png"] is None
        for name in images.names:
            images.read(name, (0, 0, 0), images.shapes[name][1:])
