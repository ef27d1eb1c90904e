"""How an unmodified nnU-Net finds our classes, in every kind of install and process."""

from __future__ import annotations

import os
import pickle
import pkgutil
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib import import_module
from pathlib import Path

import nnunetv2
import pytest
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

import nnunet_transformers
from nnunet_transformers import discovery

REPOSITORY = Path(__file__).parent.parent
FIND = """
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as trainer
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class as find
import nnunetv2, os
planners = os.path.join(nnunetv2.__path__[0], "experiment_planning")
found = trainer("nnUNetTrainerQTUNet_5epochs"), find(planners, "nnUNetPlannerQTUNetT", "nnunetv2.experiment_planning")
print(*found, flush=True)  # a pool ends its worker before that would write it
"""
# calls and returns of the hook, and what it imports
COUNT = """
import os, sys
before, events = set(sys.modules), []
sys.setprofile(lambda frame, event, argument: events.append(event))
from nnunet_transformers.discovery import install
install()
sys.setprofile(None)
print(len(events), sorted(set(sys.modules) - before))
"""
FOUND = "nnunet_transformers.trainers.qt_unet.nnUNetTrainerQTUNet_5epochs"


def run(python, *arguments, **environment):
    env = {**os.environ, "PYTHONWARNINGS": "ignore", **environment}
    env.pop("PYTHONPATH", None)
    return subprocess.run([str(python), *arguments], capture_output=True, text=True, env=env, cwd="/", check=False)


class TestTable:
    def test_every_name_is_a_class_of_that_name(self):
        for name in discovery.CLASSES:
            found = recursive_find_python_class("unused", name, None)
            assert found.__name__ == name
            assert found.__module__ == discovery.CLASSES[name]
            assert pickle.loads(pickle.dumps(found)) is found

    def test_what_timm_says_of_itself_is_not_shown(self, tmp_path, monkeypatch):
        """That message alone, of what the lookup of a class imports."""
        text = (
            "import warnings\nwarnings.warn('{}', FutureWarning)\nwarnings.warn('other', FutureWarning)\nclass A: pass"
        )
        (tmp_path / "it_warns.py").write_text(text.format("`torch.jit.interface` is deprecated. Please use ..."))
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setitem(discovery.CLASSES, "A", "it_warns")
        with pytest.warns(FutureWarning) as said:
            assert discovery.find("A").__name__ == "A"
        assert [str(warning.message) for warning in said] == ["other"]

    def test_no_class_is_forgotten(self):
        from nnunet_transformers import plans, trainers

        modules = [
            import_module(f"{package.__name__}.{found.name}")
            for package in (plans, trainers)
            for found in pkgutil.iter_modules(package.__path__)
        ]
        defined = {
            name
            for module in modules
            for name, value in vars(module).items()
            if name.startswith("nnUNet") and isinstance(value, type) and value.__module__ == module.__name__
        }
        assert defined == set(discovery.CLASSES)

    def test_other_names_fall_through(self):
        assert recursive_find_trainer_class_by_name("nnUNetTrainer_5epochs").__module__.startswith("nnunetv2.")
        with pytest.raises(RuntimeError, match="Could not find requested nnunet trainer"):
            recursive_find_trainer_class_by_name("nnUNetTrainerOfNobody")

    @pytest.mark.parametrize(
        ("name", "meant"),
        [("nnUNetTrainerQTUnet", "nnUNetTrainerQTUNet"), ("nnUNetPlannerResEncK", "nnUNetPlannerResEncM")],
    )
    def test_closest_names(self, name, meant, capfd, monkeypatch):
        folder = str(Path(nnunetv2.__path__[0]) / "experiment_planning")
        assert recursive_find_python_class(folder, name, "nnunetv2.experiment_planning") is None
        said = capfd.readouterr().err
        assert said.count("did you mean") == 1
        assert meant in said
        monkeypatch.setenv("nnUNet_extTrainer", folder)  # where nnU-Net looks next
        assert recursive_find_python_class(folder, name, "nnunetv2.experiment_planning") is None
        assert recursive_find_python_class(folder, "ResamplerOfNobody", "nnunetv2.experiment_planning") is None
        assert capfd.readouterr().err == ""


class TestHook:
    def test_costs_little_and_imports_nothing(self):
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        # without the site module, by which the hook would be there already
        output = subprocess.check_output([sys.executable, "-S", "-c", COUNT], env=env, text=True)
        events, imported = output.split(maxsplit=1)
        # __future__ is a table of names, as its annotations stay text
        assert imported.strip() == "['__future__', 'nnunet_transformers', 'nnunet_transformers.discovery']"
        # 1200 in Python 3.11; json alone, imported, is 15000
        assert int(events) < 4000
        loaded = run(sys.executable, "-c", "import sys; print({'torch', 'nnunetv2', 'numpy'} & set(sys.modules))")
        assert loaded.stdout.strip() == "set()"

    def test_isolated_mode_and_spawned_worker(self):
        """The worker alone finds the class, as it takes seconds to import what that needs."""
        code = (
            "import multiprocessing as mp\n"
            "with mp.get_context('spawn').Pool(1) as pool:\n"
            f"    pool.apply(exec, ({FIND!r},))\n"
        )
        assert FOUND in run(sys.executable, "-I", "-c", code).stdout

    def test_survives_a_broken_look_up_module(self):
        code = (
            "import sys, types; sys.modules[%r] = types.ModuleType('empty');"
            "from nnunet_transformers import discovery; sys.meta_path.pop(0); discovery.install(); print('alive')"
        )
        assert run(sys.executable, "-c", code % discovery.TARGET).stdout.strip() == "alive"

    def test_switched_off_for_a_shim_folder_beside_another_plugin(self, tmp_path):
        (tmp_path / "theirs.py").write_text(
            "from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer\n"
            "class nnUNetTrainerTheirs(nnUNetTrainer): pass\n"
        )
        shim = Path(nnunet_transformers.__file__).parent / "ext_trainers"
        code = (
            "import os, pickle, sys\n"
            "from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name as find\n"
            "try:\n"
            "    find('nnUNetTrainerQTUNet')\n"
            "except RuntimeError as error:\n"
            "    print(error)\n"
            "os.environ['nnUNet_extTrainer'] = sys.argv[1]\n"
            "ours = find('nnUNetTrainerQTUNet'); print(ours, find('nnUNetTrainerTheirs'))\n"
            "assert pickle.loads(pickle.dumps(ours)) is ours"
        )
        folders = f"{tmp_path}{os.pathsep}{shim}"
        result = run(sys.executable, "-c", code, folders, NNUNET_TRANSFORMERS_HOOK="0")
        assert "Could not find requested nnunet trainer" in result.stdout, result.stderr
        assert "nnunet_transformers.trainers.qt_unet.nnUNetTrainerQTUNet" in result.stdout, result.stderr
        assert "theirs.nnUNetTrainerTheirs" in result.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A virtual environment that sees this one's packages, but not our own install in it."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    packages = folder / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "nnunet_transformers" not in entry.name:
            (packages / entry.name).symlink_to(entry)
    (site / "aaa_packages.pth").write_text(f"{packages}\n")
    return python, site


def install(python, site, *arguments):
    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    if Path(uv).is_file():
        command = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", str(python), *arguments]
    else:
        command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", *arguments]
    subprocess.run(command, check=True, capture_output=True)


def uninstall(python):
    uv = shutil.which("uv") or str(Path(sys.executable).parent / "uv")
    if Path(uv).is_file():
        command = [uv, "pip", "uninstall", "--quiet", "--python", str(python), "nnunet-transformers"]
    else:
        command = [sys.executable, "-m", "pip", "--python", str(python), "uninstall", "--yes", "nnunet-transformers"]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(REPOSITORY)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.parametrize("kind", ["wheel", "editable"])
def test_install_and_uninstall(kind, environment, wheel):
    python, site = environment
    hooked = "import sys; print('nnunet_transformers.discovery' in sys.modules)"
    assert run(python, "-c", hooked).stdout.strip() == "False"
    install(
        python, site, *([str(wheel)] if kind == "wheel" else ["--no-build-isolation", "--editable", str(REPOSITORY)])
    )
    try:
        result = run(python, "-I", "-c", FIND)
        assert FOUND in result.stdout, result.stderr
        assert "nnunet_transformers.plans.qt_unet.nnUNetPlannerQTUNetT" in result.stdout
        shim = run(
            python, "-c", "from nnunet_transformers.cli.doctor import trainers_path; trainers_path()"
        ).stdout.strip()
        assert (Path(shim) / "nnunet_transformers_trainers.py").is_file()
    finally:
        uninstall(python)
    assert list(site.glob("*nnunet_transformers*")) == []
    after = run(python, "-c", hooked)
    assert (after.stdout.strip(), after.stderr) == ("False", "")
