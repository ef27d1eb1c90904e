"""Installed packages that declare networks, planners, trainers, methods and recipes by entry points."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from nnunet_transformers import _one_line, _plugins, discovery
from nnunet_transformers.architectures import create_network, get_network, list_networks
from nnunet_transformers.benchmarking.networks import known_networks
from nnunet_transformers.cli._findings import OK, PROBLEM, WARNING
from nnunet_transformers.cli._plugin_checks import check_hidden_classes, check_plugins
from nnunet_transformers.plans.plan_files import load_plans
from nnunet_transformers.runs.recipe import list_recipes, read_recipe
from tests.packages import site_folder

PRETRAINING = "nnunet_transformers.pretraining"
NETWORK = """
from nnunet_transformers.architectures import register_network
from nnunet_transformers.architectures.resunet import ResUnet
class {name}(ResUnet): pass
register_network({registered!r}, {name}, widths=(8, 16, 32, 64))
"""
CLASSES = """
from nnunet_transformers.plans.planner import TransformerPlanner
from nnunet_transformers.trainers.lengths import with_schedules
from nnunet_transformers.trainers.trainer import TransformerTrainer
class nnUNetPlannerMine(TransformerPlanner): pass
class nnUNetTrainerMine(TransformerTrainer): pass
globals().update(with_schedules(nnUNetTrainerMine))
"""


@pytest.fixture
def site(tmp_path):
    """A folder that packages are installed into; afterwards nothing of them is left in this process."""
    with site_folder(tmp_path / "site") as folder:
        yield folder


def install(site: Path, package: str, entry_points: str, **modules: str) -> None:
    """What pip leaves of a package: modules and metadata."""
    metadata = site / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = [line.strip() for line in entry_points.strip().splitlines()]
    text = "\n".join(f"[nnunet_transformers.{line[1:]}" if line.startswith("[") else line for line in lines)
    (metadata / "entry_points.txt").write_text(text)
    for name, content in modules.items():
        (site / f"{name}.py").write_text(content)
    _plugins.declarations.cache_clear()


def findings(state):
    return [finding.text for finding in check_plugins() if finding.state == state]


class TestPlannersAndTrainers:
    ENTRIES = """
        [planners]
        nnUNetPlannerMine = mine:nnUNetPlannerMine
        [trainers]
        nnUNetTrainerMine = mine:nnUNetTrainerMine
    """

    def test_found_by_nnunet(self, site, capsys):
        install(site, "mine", self.ENTRIES, mine=CLASSES)
        assert "mine" not in sys.modules
        assert recursive_find_trainer_class_by_name("nnUNetTrainerMine").__module__ == "mine"
        assert recursive_find_trainer_class_by_name("nnUNetTrainerMine_5epochs").default_epochs == 5
        planner = recursive_find_python_class("unused", "nnUNetPlannerMine", None)
        assert planner.default_plans_name() == "nnUNetMinePlans"
        assert capsys.readouterr().err == ""
        assert recursive_find_python_class("unused", "nnUNetPlannerMineToo", None) is None
        # of another's folder perhaps
        assert recursive_find_python_class("unused", "nnUNetTrainerMine_3epochs", None) is None
        said = capsys.readouterr().err.splitlines()
        assert all("did you mean" in line for line in said)
        assert "nnUNetPlannerMine," in said[0]
        with pytest.raises(FileNotFoundError, match="-pl nnUNetPlannerMine` first"):
            load_plans(Path("Dataset004_Hippocampus"), "nnUNetMinePlans")
        # an option with a name that belongs to the other, which nnU-Net looks for in other folders
        for name, kind in (("nnUNetPlannerResEncM", "planner"), ("nnUNetTrainer_5epochs", "trainer")):
            assert recursive_find_python_class("unused", name, None) is None
            assert f"{name} is a {kind}; -tr takes a trainer, -pl a planner" in capsys.readouterr().err
        # what a package of a model has to pin
        assert _plugins.packages_of(["mine.network.Net", "nnunet_transformers.trainers"]) == {"mine"}
        assert findings(PROBLEM) == findings(WARNING) == []
        assert findings(OK) == ["plugins: mine 1.0 (nnUNetPlannerMine, nnUNetTrainerMine)"]

    def test_a_broken_package_harms_nobody(self, site, capsys):
        install(site, "broken", self.ENTRIES, mine="import missing_library")
        with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer nnUNetTrainerMine"):
            recursive_find_trainer_class_by_name("nnUNetTrainerMine")
        said = "the trainer nnUNetTrainerMine of the installed package broken 1.0 does not load: ModuleNotFoundError"
        printed = capsys.readouterr().err
        assert said in printed and "did you mean" not in printed
        assert recursive_find_trainer_class_by_name("nnUNetTrainerQTUNet") is not None
        assert len(findings(PROBLEM)) == 2

    def test_another_packages_class_of_that_name_is_taken(self, site, capsys):
        install(site, "a_broken", self.ENTRIES.replace("mine:", "broken:"), broken="import missing_library")
        install(site, "mine", self.ENTRIES, mine=CLASSES)
        assert recursive_find_trainer_class_by_name("nnUNetTrainerMine").__module__ == "mine"
        assert "installed package a-broken 1.0 does not load" in capsys.readouterr().err

    def test_remedies_of_broken_packages(self, site):
        """One that was installed from a folder may be on no index."""
        install(site, "broken", self.ENTRIES, mine="import missing_library")
        remedies = {f.remedy for f in check_plugins() if f.state == PROBLEM}
        assert remedies == {"pip install --upgrade broken, or pip uninstall broken"}
        (place,) = Path(site).glob("broken*.dist-info")
        (place / "direct_url.json").write_text('{"url": "file:///home/me/broken", "dir_info": {"editable": true}}')
        remedies = {f.remedy for f in check_plugins() if f.state == PROBLEM}
        assert remedies == {"mend it in /home/me/broken, or pip uninstall broken"}
        (place / "direct_url.json").write_text('{"url": "file:///home/my%20own", "dir_info": {}}')
        assert {f.remedy.partition(",")[0] for f in check_plugins() if f.remedy} == {"mend it in /home/my own"}
        (place / "direct_url.json").write_text('{"url": "https://host/broken", "vcs_info": {"vcs": "git"}}')
        remedies = {f.remedy.partition(",")[0] for f in check_plugins() if f.remedy}
        assert remedies == {"install it again from https://host/broken"}

    def test_mistakes_are_told_in_one_line(self, site, monkeypatch):
        """As those of this package's own planners and trainers."""
        install(site, "mine", self.ENTRIES, mine=CLASSES)
        monkeypatch.setattr(sys, "argv", ["nnUNetv2_train"])
        monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
        assert recursive_find_trainer_class_by_name("nnUNetTrainerMine") is not None
        assert sys.excepthook is _one_line.show

    def test_a_package_that_exits(self, site, capsys):
        install(site, "broken", self.ENTRIES, mine="raise SystemExit('no licence')")
        assert recursive_find_python_class("unused", "nnUNetPlannerMine", None) is None
        assert "SystemExit: no licence" in capsys.readouterr().err

    def test_damaged_metadata(self, site, monkeypatch):
        def damaged(distribution):
            raise OSError("unreadable")

        install(site, "mine", self.ENTRIES, mine=CLASSES)
        monkeypatch.setattr(_plugins, "_of", damaged)
        assert recursive_find_python_class("unused", "nnUNetPlannerMine", None) is None
        monkeypatch.setattr(_plugins, "distributions", damaged)
        _plugins.declarations.cache_clear()
        assert recursive_find_python_class("unused", "nnUNetPlannerMine", None) is None

    def test_order(self, site):
        """nnU-Net, this package, then packages by their names."""
        for package in ("second", "first"):
            entries = f"""
                [trainers]
                nnUNetTrainerMine = {package}:nnUNetTrainerMine
                nnUNetTrainer_5epochs = {package}:nnUNetTrainer_5epochs
                nnUNetTrainerQTUNet = {package}:nnUNetTrainerQTUNet
            """
            names = "nnUNetTrainer_5epochs", "nnUNetTrainerQTUNet"
            more = "".join(f"class {name}(nnUNetTrainerMine): pass\n" for name in names)
            install(site, package, entries, **{package: CLASSES + more})
        found = map(recursive_find_trainer_class_by_name, ("nnUNetTrainerMine", *names))
        assert [trainer.__module__.split(".")[0] for trainer in found] == ["first", "nnunetv2", "nnunet_transformers"]
        taken = [text.split("installed package ")[1] for text in findings(WARNING)]
        assert taken == [
            "first 1.0 has a name of nnunet-transformers, which is taken",
            "first 1.0 has a name of nnU-Net, which is taken",
            "second 1.0 has a name of first, which is taken",
            "second 1.0 has a name of nnunet-transformers, which is taken",
            "second 1.0 has a name of nnU-Net, which is taken",
        ]

    def test_declared_as_something_else(self, site):
        entries = """
            [trainers]
            nnUNetTrainerAlias = mine:nnUNetTrainerMine
            nnUNetTrainerText = mine:__name__
            [plans]
            x = mine
        """
        install(site, "mine", entries, mine=CLASSES)
        alias, text, group = sorted(findings(PROBLEM), key=lambda text: "group" in text)
        assert "is the class nnUNetTrainerMine; plans and checkpoints name that" in alias
        assert "is no nnUNetTrainer" in text
        assert "unknown group nnunet_transformers.plans" in group


class TestNetworks:
    def test_found(self, site):
        entries = "[networks]\nmine_small = mine\nmine_class = mine:Mine"
        install(site, "mine", entries, mine=NETWORK.format(name="Mine", registered="mine_small"))
        assert "mine" not in sys.modules
        network = create_network("mine_small", 1, 2, (32, 32))
        assert get_network("mine_class").class_path == "mine.Mine"
        assert sum(p.numel() for p in network.parameters()) < 1e6
        assert {"mine_small", "mine_class"} <= {*list_networks(2), *known_networks(3)}

    def test_a_broken_package_harms_nobody(self, site):
        install(site, "broken", "[networks]\nmine = mine\nother = other", mine="1 / 0", other="")
        names = list_networks()
        assert "qt_unet_tiny" in names
        assert not {"mine", "other"} & set(names)
        with pytest.raises(
            ValueError, match=r"network mine of the installed package broken 1\.0 does not load: ZeroDiv"
        ):
            create_network("mine", 1, 2, (32, 32))
        with pytest.raises(ValueError, match="other registers no network other"):
            get_network("other")
        with pytest.raises(ValueError, match="did you mean mine"):
            get_network("mina")

    def test_a_name_of_ours(self, site):
        ours = get_network("qt_unet_tiny")
        entries = "[networks]\nmine = mine\nqt_unet_tiny = theirs"
        theirs = NETWORK.format(name="Theirs", registered="qt_unet_tiny")
        install(site, "mine", entries, mine=theirs, theirs=theirs)
        assert "mine" not in list_networks()
        assert get_network("qt_unet_tiny") is ours
        mine, qt_unet = findings(PROBLEM)
        assert "mine has the name of one of nnunet_transformers; register it under another name" in mine
        assert "theirs has the name of one of nnunet_transformers" in qt_unet


class TestRecipes:
    def test_found(self, site, examples, tmp_path, monkeypatch):
        """A recipe of a package, and a method by its name in a user's recipe, which needs no --trust then."""
        text = (Path(__file__).parents[1] / "docs/examples/vicreg.yaml").read_text()
        recipes = site / "mine_recipes"
        recipes.mkdir()
        (recipes / "vicreg.yaml").write_text(text)
        (recipes / "qt_ssl_ct.yaml").write_text("of nobody")
        (recipes / "README.md").write_text("no recipe")
        entries = "[pretraining_methods]\nvicreg = vicreg:VICReg\n[recipes]\npretraining = mine_recipes"
        install(site, "mine", entries)
        assert "vicreg" in list_recipes(PRETRAINING)
        assert "vicreg" not in list_recipes("nnunet_transformers.detection")
        assert "README.md" not in list_recipes(PRETRAINING)
        assert read_recipe("vicreg", PRETRAINING).part("model").__name__ == "VICReg"
        assert "model" in read_recipe("qt_ssl_ct", PRETRAINING).content
        own = tmp_path / "own.yaml"
        own.write_text("base: vicreg\nmodel:\n  class_path: vicreg\n")
        assert read_recipe(str(own), PRETRAINING).content["model"]["class_path"] == "vicreg.VICReg"
        assert findings(PROBLEM) == []
        install(site, "another", "[recipes]\npretraining = mine_recipes")
        assert [text.rpartition(" has the ")[2] for text in findings(WARNING)] == [
            "recipe qt_ssl_ct, a name of nnunet-transformers, which is taken",
            "recipe qt_ssl_ct, a name of nnunet-transformers, which is taken",
            "recipe vicreg, a name of another, which is taken",
        ]

    def test_broken(self, site):
        install(site, "broken", "[recipes]\npretraining = nowhere.recipes\ntraining = mine", mine="")
        assert "qt_ssl_ct" in list_recipes(PRETRAINING)
        missing, name = findings(PROBLEM)
        assert "does not load: ModuleNotFoundError" in missing
        assert "belongs to no command; name it pretraining, classification, detection" in name


def test_entry_points_are_read_for_unknown_names_only():
    """Neither the start of Python nor a name of nnU-Net's or ours imports importlib.metadata for it."""
    code = (
        "import sys, types\n"
        "module = types.ModuleType(%r)\n"
        "module.recursive_find_python_class = lambda folder, name: {'stock': int}.get(name)\n"
        "sys.modules[module.__name__] = module\n"
        "from nnunet_transformers import discovery\n"
        "discovery.CLASSES['Decimal'] = 'decimal'; discovery.install(); find = module.recursive_find_python_class\n"
        "state = lambda: ('nnunet_transformers._plugins' in sys.modules, 'importlib.metadata' in sys.modules)\n"
        "assert find('', 'stock') and find('', 'Decimal'); print(state())\n"
        "assert find('', 'nobody') is None; print(state())\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    output = subprocess.check_output([sys.executable, "-S", "-c", code % discovery.TARGET], env=env, text=True)
    assert output.split("\n")[:2] == ["(False, False)", "(True, True)"]


def test_classes_of_the_users_that_are_hidden(monkeypatch, tmp_path):
    assert [*check_hidden_classes()] == []
    (tmp_path / "mine.py").write_text("class nnUNetTrainerUNETR(object): pass\nclass Mine: pass\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path))
    (finding,) = check_hidden_classes()
    assert finding.state == WARNING
    assert f"{tmp_path} has nnUNetTrainerUNETR, and -tr finds this package's" in finding.text
    monkeypatch.setenv(discovery.SWITCH, "0")
    assert [*check_hidden_classes()] == []
    monkeypatch.delenv(discovery.SWITCH)
    # this package itself, in a folder of checkouts, by a link, or a part of it
    package = Path(discovery.__file__).parent
    (tmp_path / "linked").symlink_to(package)
    (tmp_path / "mine.py").write_text("class Mine: pass")
    # an editor's lock on a file is a link to nowhere
    (tmp_path / ".#mine.py").symlink_to("me@here.1")
    for place in (package.parent, package / "trainers", tmp_path / "linked", tmp_path):
        monkeypatch.setenv("nnUNet_extTrainer", str(place))
        assert [*check_hidden_classes()] == []


def test_classes_of_the_users_that_a_package_hides(site, monkeypatch, tmp_path):
    install(site, "mine", TestPlannersAndTrainers.ENTRIES, mine=CLASSES)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "other.py").write_text("class nnUNetTrainerMine: pass\n")
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "own"))
    assert recursive_find_trainer_class_by_name("nnUNetTrainerMine").__module__ == "mine"
    (finding,) = check_hidden_classes()
    assert "has nnUNetTrainerMine, and -tr finds the installed package mine's of that name" in finding.text
    monkeypatch.setenv("nnUNet_extTrainer", str(site))  # the package itself
    assert [*check_hidden_classes()] == []
