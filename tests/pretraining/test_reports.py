"""MGCA's data: tables with every kind of unusable row, radiographs, samples, text encoder."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image

from benchmarks.synthetic_reports import write_dataset, write_text_encoder
from nnunet_transformers.pretraining.data.radiographs import RadiographFiles, read_radiograph
from nnunet_transformers.pretraining.data.report_pairs import ReportPairData, ReportPairs
from nnunet_transformers.pretraining.data.report_table import clean_report, read_reports, split_of
from nnunet_transformers.pretraining.data.transforms import fit_canvas
from nnunet_transformers.pretraining.encoders import text
from nnunet_transformers.pretraining.encoders.text import TextEncoder, load_tokenizer, sum_into_words, tokenize


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(write_text_encoder(tmp_path_factory.mktemp("bert"), layers=3))


def write_image(path, array):
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def write_images(folder, names, size=(6, 8)):
    for number, name in enumerate(names):
        array = np.zeros(size, np.uint8)
        array[number % size[0]] = 100 + number
        write_image(folder / name, array)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Nodule (2.5 cm), RIGHT lower-lobe.", "Nodule 2.5 cm RIGHT lower lobe"),
        ("A (.5 cm) mass; 1,200 HU. T2 signal", "A .5 cm mass 1,200 HU T2 signal"),
        ("Seen in 2019.No change", "Seen in 2019 No change"),
        ("___F with\nascites_eval", "F with ascites eval"),
        ("Höhle im Oberlappen", "Höhle im Oberlappen"),
        # accents of their own characters, as in files of Macs
        ("Ho\u0308hle, le\u0301sion", "Höhle lésion"),
    ],
)
def test_cleaning(text, words):
    assert clean_report(text) == words


class TestTable:
    def test_bad_rows(self, tmp_path):
        write_images(tmp_path, [f"{name}.png" for name in "abcdefghi"])
        rows = [
            b"image,report,patient_id,note",
            b"a.png,No acute process,p1,",
            b"b.png,One short,p2,",
            b"c.png,,p3,",
            b"d.png,Caf\xe9 in the lung,p4,",
            b",Report without an image,p5,",
            b"gone.png,Image is not there,p6,",
            b"a.png,The image again here,p7,",
            b"e.png,No acute process.,p8,",
            b"f.png,Too,many,fields,here",
            b"g.png,Too few",
            b"",
            b'h.png,"A quote" that goes on,p9,',
            b"h.png,Broken bytes in a column not used,p9,\xff",
            b'i.png,"A report, in quotes\nand two lines",p10,',
            b'b.png,"A quote that is never closed,p11,',
            b"c.png,Swallowed by that quote,p12,",
        ]
        (tmp_path / "table.csv").write_bytes(b"\xef\xbb\xbf" + b"\r\n".join(rows))
        table = read_reports(tmp_path / "table.csv", RadiographFiles(tmp_path, 256))
        assert [pair.image for pair in table.pairs] == ["a.png", "h.png", "i.png"]
        assert table.pairs[2].report == "A report in quotes and two lines"
        assert {skipped.name: skipped.reason for skipped in table.skipped} == {
            "b.png": "report has fewer than 3 words",
            "c.png": "has no report",
            "d.png": "holds bytes that are not UTF-8",
            "line 6": "names no image",
            "gone.png": "image does not exist",
            "a.png": "image is in the table more than once",
            "e.png": "report is in the table more than once",
            "line 10": "has more or fewer fields than the header",
            "line 11": "has more or fewer fields than the header",
            "line 13": "malformed row: ',' expected after '\"'",
            "line 17": "malformed row: unexpected end of data",
        }
        assert "skipped 2: has more or fewer fields than the header (line 10, line 11)" in table.summary()
        kept = read_reports(tmp_path / "table.csv", RadiographFiles(tmp_path, 256), keep_repeated_reports=True)
        assert [pair.image for pair in kept.pairs] == ["a.png", "e.png", "h.png", "i.png"]

    def test_jsonl(self, tmp_path):
        write_images(tmp_path, ["a.png", "b.png", "c.png"])
        rows = [
            json.dumps({"image": "a.png", "findings": "lungs are clear", "impression": "Normal"}),
            "{not json",
            "[1, 2]",
            json.dumps({"image": None, "report": "a b c"}),
            json.dumps({"image": "b.png", "report": "lone \ud800 surrogate here"}),
            json.dumps({"image": "c.png", "report": None, "findings": "heart is large", "patient_id": 7}),
        ]
        (tmp_path / "table.jsonl").write_text("\n\n".join(rows))
        table = read_reports(tmp_path / "table.jsonl", RadiographFiles(tmp_path, 256))
        assert [(p.report, p.patient_id) for p in table.pairs] == [
            ("Normal lungs are clear", ""),
            ("heart is large", "7"),
        ]
        assert [(s.name, s.reason) for s in table.skipped] == [
            ("line 3", "is not a JSON object"),
            ("line 5", "is not a JSON object"),
            ("line 7", "names no image"),
            ("b.png", "holds bytes that are not UTF-8"),
        ]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"file,report\na,b c d", "no column image; it has 'file', 'report'"),
            ("image,report\na,b".encode("utf-16"), "no column image"),
            (b"image,label\na.png,1", "none of the columns report, impression, findings; it has 'image', 'label'"),
            (b"", "no column image; it has none"),
        ],
    )
    def test_missing_columns(self, tmp_path, content, message):
        (tmp_path / "table.csv").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_reports(tmp_path / "table.csv", RadiographFiles(tmp_path, 256))

    def test_split_by_patient(self, tmp_path):
        table = write_dataset(tmp_path, images=60, size=16)
        text = table.read_text()
        for number in range(60):
            text = text.replace(f",patient_{number},", f",patient_{number // 3},")
        table.write_text(text)
        options = {"val_share": 0.3, "keep_repeated_reports": True}
        pairs = read_reports(table, RadiographFiles(tmp_path, 256), **options).pairs
        splits = {}
        for pair in pairs:
            splits.setdefault(pair.patient_id, set()).add(pair.split)
        assert all(len(split) == 1 for split in splits.values())
        assert {pair.split for pair in pairs} == {"train", "val"}
        # a patient's split does not depend on the other patients
        table.write_text("\n".join(text.splitlines()[:31]))
        assert read_reports(table, RadiographFiles(tmp_path, 256), **options).pairs == pairs[:30]
        assert split_of("p1", 0.5) == split_of("p1", 0.5)

    def test_split_column(self, tmp_path):
        write_images(tmp_path, ["a.png", "b.png", "c.png"])
        rows = (
            "image,report,split,patient_id\na.png,one two three,train,1\nb.png,two three four,VAL,1\nc.png,x y z,test,2"
        )
        (tmp_path / "table.csv").write_text(rows)
        with pytest.warns(UserWarning, match="1 patients are in both splits"):
            table = read_reports(tmp_path / "table.csv", RadiographFiles(tmp_path, 256))
        assert [pair.split for pair in table.pairs] == ["train", "val"]
        assert table.skipped[0].reason == "split is 'test', not train or val"

    def test_words_of_mimic(self, tmp_path):
        write_images(tmp_path, ["a.png", "b.png"])
        rows = "a.png,one two three,train\nb.png,four five six,validate\n"
        (tmp_path / "table.csv").write_text(f"image,report,split\n{rows}")
        table = read_reports(tmp_path / "table.csv", RadiographFiles(tmp_path, 256))
        assert [pair.split for pair in table.pairs] == ["train", "val"]


class TestImages:
    @pytest.mark.parametrize("ending", [".png", ".jpg", ".nii.gz", ".mha", ".tif"])
    def test_grey_image(self, tmp_path, ending):
        array = np.tile(np.linspace(50, 200, 16).astype(np.uint8), (8, 1))
        array = array[None] if ending == ".nii.gz" else array
        write_image(tmp_path / f"image{ending}", array)
        image = read_radiograph(tmp_path / f"image{ending}", 3)
        assert image.shape[0] == 3
        assert sorted(image.shape[1:]) == [8, 16]
        assert (float(image.min()), float(image.max())) == (0, 1)
        assert torch.equal(image[0], image[2])

    def test_unusable_images(self, tmp_path):
        write_image(tmp_path / "flat.png", np.full((4, 4), 7, np.uint8))
        write_image(tmp_path / "volume.mha", np.random.default_rng(0).random((3, 4, 4)))
        (tmp_path / "image.dcm").write_bytes(b"x")
        (tmp_path / "image.xyz").write_bytes(b"x")
        transparent = np.zeros((4, 4, 4), np.uint8)
        transparent[0, :, 3] = 200
        Image.fromarray(transparent).save(tmp_path / "transparent.png")
        reasons = {
            "flat.png": "constant",
            "transparent.png": "constant",
            "volume.mha": "3 slices",
            "image.dcm": "Unable to|no reader|DICOM",
            "image.xyz": "ending .xyz",
        }
        for name, message in reasons.items():
            with pytest.raises((ValueError, RuntimeError), match=message):
                read_radiograph(tmp_path / name, 1)

    def test_long_side_fits_and_the_rest_is_zero(self):
        image = fit_canvas(torch.ones(1, 10, 20), (256, 256))
        assert image.shape == (1, 256, 256)
        assert (image[:, 64:192] > 0.99).all()
        assert (image[:, :64] == 0).all()
        assert (image[:, 192:] == 0).all()


class TestSamples:
    @pytest.fixture
    def pairs(self, tmp_path, bert):
        table = write_dataset(tmp_path, images=8, size=32)
        pairs = read_reports(table, RadiographFiles(tmp_path, 256), keep_repeated_reports=True).pairs
        files = RadiographFiles(tmp_path, 32)
        return lambda is_training, p=pairs: ReportPairs(p, files, (28, 28), 1, load_tokenizer(bert), 32, is_training)

    def test_each_pair_once_and_repeatable(self, pairs):
        training = pairs(True)
        first = [training[i]["image"] for i in range(8)]
        assert all(torch.equal(a, training[i]["image"]) for i, a in enumerate(first))
        training.epoch = 1
        assert not all(torch.equal(a, training[i]["image"]) for i, a in enumerate(first))
        seen = {tuple(pairs(False)[i]["image"].flatten().tolist()) for i in range(8)}
        assert len(seen) == 8

    def test_unreadable_image_is_replaced_and_named(self, pairs):
        training = pairs(True)
        broken = training.radiographs.folder / training.pairs[3].image
        broken.write_bytes(broken.read_bytes()[:50])
        with pytest.warns(UserWarning, match=f"skipped {broken.name}: cannot be read"):
            samples = [training[i] for i in range(8)]
        assert all(sample["image"].isfinite().all() for sample in samples)
        for pair in training.pairs:
            (training.radiographs.folder / pair.image).write_bytes(b"")
        with pytest.raises(ValueError, match="images in a row"), pytest.warns(UserWarning):
            training[0]

    def test_nothing_to_validate_on(self, tmp_path, bert):
        write_images(tmp_path, ["a.png"])
        (tmp_path / "table.csv").write_text("image,report,split\na.png,one two three,train")
        with pytest.raises(ValueError, match="nothing to train or to validate on: 1 pairs to train on, 0"):
            ReportPairData(str(tmp_path / "table.csv"), bert)


class TestText:
    def encode(self, encoder, bert, *reports, length=32):
        with torch.no_grad():
            return encoder.eval()(**tokenize(load_tokenizer(bert), reports, length))

    def test_sub_words_are_summed(self, bert):
        tokens = tokenize(load_tokenizer(bert), ["small nodules", "left 2.5 cm"], 10)
        assert tokens["word_ids"].tolist() == [
            [-1, 0, 1, 1, 1, -1, -1, -1, -1, -1],
            [-1, 0, 1, 1, 1, 2, -1, -1, -1, -1],
        ]
        features = torch.randn(2, 10, 3)
        words = sum_into_words(features, tokens["word_ids"], int(tokens["word_ids"].max()) + 1)
        torch.testing.assert_close(words[0, 1], features[0, 2:5].sum(0))
        torch.testing.assert_close(words[1, 2], features[1, 5])
        assert (words[0, 2] == 0).all()

    def test_features(self, bert):
        encoder = TextEncoder(bert, num_layers=2)
        assert len(encoder.model.encoder.layer) == 2
        features = self.encode(encoder, bert, "small nodules", "a large left nodule")
        assert features.words.shape == (2, 4, 64)
        assert features.padding.tolist() == [[False, False, True, True], [False] * 4]
        assert (features.attention[0, 2:] == 0).all()
        # the remaining attention is to [CLS] and [SEP]
        assert (features.attention.sum(1) < 1).all()

    def test_padding_does_not_matter(self, bert):
        encoder = TextEncoder(bert, num_layers=2)
        alone = self.encode(encoder, bert, "small nodules", length=8)
        among = self.encode(encoder, bert, "small nodules", "there is a large nodule in the left lung", length=64)
        torch.testing.assert_close(alone.report[0], among.report[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.words[0], among.words[0, :2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.attention[0], among.attention[0, :2], rtol=1e-4, atol=1e-5)

    def test_last_layers_are_summed(self, bert):
        encoder = TextEncoder(bert, 3, summed_layers=2).eval()
        features = self.encode(encoder, bert, "left small lung", length=8)
        tokens = tokenize(load_tokenizer(bert), ["left small lung"], 8)
        with torch.no_grad():
            states = encoder.model(tokens["input_ids"], tokens["attention_mask"], output_hidden_states=True)[1]
        torch.testing.assert_close(features.report, (states[-1] + states[-2])[:, 0])
        with pytest.raises(ValueError, match="summed_text_layers must be 1 to 2, the layers in use, got 3"):
            TextEncoder(bert, 2, summed_layers=3)

    def test_order_of_words(self, bert):
        reports = ("left small nodule right large", "right small nodule left large")
        for compat in (False, True):
            features = self.encode(TextEncoder(bert, 2, reference_compat=compat), bert, *reports)
            difference = (features.report[0] - features.report[1]).abs().max()
            assert (difference < 1e-5) == compat

    def test_reference_compat(self, bert):
        reports = ("left small lung", "left lung")
        features = self.encode(TextEncoder(bert, 2, reference_compat=True), bert, *reports, length=5)
        # the first report fills all five tokens
        assert features.padding.tolist() == [[False, False], [False, False]]
        tokens = tokenize(load_tokenizer(bert), reports, 5)
        encoder = TextEncoder(bert, 2).eval()
        positions = torch.zeros(2, 5, dtype=torch.long)
        with torch.no_grad():
            output = encoder.model(
                tokens["input_ids"], tokens["attention_mask"], position_ids=positions, output_attentions=True
            )
        torch.testing.assert_close(features.attention, output.attentions[-1][:, :, 0, 2:4].mean(1))
        torch.testing.assert_close(features.words, output.last_hidden_state[:, 1:3])

    def test_code_of_a_text_encoder_is_not_run(self, bert, tmp_path, monkeypatch):
        """transformers would ask on the terminal, and run the modules that the folder names after a yes."""
        folder = Path(shutil.copytree(bert, tmp_path / "bert"))
        code = {"AutoConfig": "code.Config", "AutoModel": "code.Model", "AutoTokenizer": ["code.Slow", "code.Fast"]}
        for name in ("config.json", "tokenizer_config.json"):
            content = json.loads((folder / name).read_text())
            content.pop("tokenizer_class", None)
            (folder / name).write_text(json.dumps({**content, "model_type": "other", "auto_map": code}))
        (folder / "code.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
        monkeypatch.setattr("builtins.input", lambda *_: "y")
        for load in (load_tokenizer, TextEncoder):
            with pytest.raises(OSError, match="contains custom code which must be executed"):
                load(str(folder))
        assert not (tmp_path / "executed").exists()

    def test_code_beside_the_weights_is_not_run(self, bert, tmp_path, monkeypatch):
        """transformers would ask, and run it after a yes."""
        monkeypatch.setattr("builtins.input", lambda *_: "y")
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        folder = Path(shutil.copytree(bert, tmp_path / "bert"))
        (folder / "stranger.py").write_text(
            f"open({str(tmp_path / 'executed')!r}, 'w')\nfrom transformers import BertConfig\n"
            "class Config(BertConfig):\n    model_type = 'stranger'\n"
        )
        config = json.loads((folder / "config.json").read_text())
        config |= {"model_type": "stranger", "auto_map": {"AutoConfig": "stranger.Config"}}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(OSError, match="not a folder with a text encoder"):
            TextEncoder(str(folder), 1)
        assert not (tmp_path / "executed").exists()

    def test_what_is_fetched_is_shown(self, bert, monkeypatch):
        shown = []
        monkeypatch.setattr(text, "rank_zero_info", shown.append)
        load_tokenizer(bert)
        assert not shown
        with pytest.raises(OSError, match="not a folder with a tokenizer"):
            load_tokenizer("no folder/no\x1bmodel")
        assert shown == ["tokenizer: no folder/no\\x1bmodel, from the hub unless it is there from before"]

    def test_errors(self, bert, tmp_path, monkeypatch):
        with pytest.raises(ValueError, match="num_layers must be 1 to 3"):
            TextEncoder(bert, 4)
        with pytest.raises(OSError, match="not a folder with a tokenizer"):
            load_tokenizer(str(tmp_path))
        with pytest.raises(OSError, match="not a folder with a text encoder"):
            TextEncoder(str(tmp_path), 1)
        with pytest.raises(ValueError, match="max_length is 80, but the text encoder has 64 positions"):
            self.encode(TextEncoder(bert, 1), bert, "left lung", length=80)
        (tmp_path / "tokenizer.json").write_text("{")
        with pytest.raises(OSError, match="not a folder with a tokenizer"):
            load_tokenizer(str(tmp_path))
        monkeypatch.setitem(sys.modules, "transformers", None)
        with pytest.raises(ModuleNotFoundError, match=r"nnunet-transformers\[reports\]"):
            load_tokenizer(bert)
