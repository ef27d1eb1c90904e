"""A package alone in a fresh environment: what its requirements install, and whether it predicts there as here.

    python benchmarks/fresh_environment.py FOLDER              # with uv where it is found, otherwise with pip
    python benchmarks/fresh_environment.py FOLDER --hashes     # every requirement locked by uv to its hashes

Makes a package of a small U-Net with random weights, without --wheel; a virtual environment beside it gets what the
package's requirements.txt lists, from the registry, and this package from the wheel in it. Its entry point then
segments an image: network off, another working folder, no variable of this environment. Adds a row to
results/fresh_environment.json. The environment takes what PyTorch's build takes, several GB with CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

from predict_ct import equal_voxels, make_image, make_model

RESULTS = Path(__file__).parent / "results" / "fresh_environment.json"
# no connection gets through, whatever asks for it
NO_NETWORK = """import socket
def refuse(*_, **__):
    raise OSError("the network was used")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""
WHERE = "import json, nnunet_transformers as n, sys; print(json.dumps([n.__file__, sys.version.split()[0]]))"


def run(*command: object, **environment: str) -> str:
    """Run a command in another working folder, without this environment's variables for Python and nnU-Net."""
    print(f"$ {' '.join(map(str, command))}", flush=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "nnUNet"))}
    words = [str(word) for word in command]
    result = subprocess.run(words, env={**clean, **environment}, cwd="/", capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(result.stdout + result.stderr)
    return result.stdout


def install(folder: Path, package: Path, with_hashes: bool) -> tuple[Path, str]:
    """Make an environment of the package's requirements; returns its interpreter and the installer."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    environment, requirements = folder / "environment", package / "requirements.txt"
    venv.create(environment, symlinks=True, with_pip=uv is None)
    python = environment / "bin" / "python"
    if with_hashes:
        if uv is None:
            raise RuntimeError("--hashes needs uv: pip install uv")
        locked = folder / "locked.txt"
        run(uv, "pip", "compile", "--quiet", "--generate-hashes", requirements, "-o", locked)
        wheels = ("--find-links", package / "wheels")
        run(uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", *wheels, "-r", locked)
        return python, "uv, by hashes"
    if uv is not None:
        run(uv, "pip", "install", "--quiet", "--python", python, "-r", requirements)
        return python, "uv"
    run(python, "-m", "pip", "install", "--quiet", "-r", requirements)
    return python, "pip"


def measure(folder: Path, with_hashes: bool) -> dict[str, Any]:
    """Make, install and predict; returns the row."""
    images, package = folder / "images", folder / "package"
    images.mkdir(parents=True)
    make_image(images / "ct_0000.nii.gz", (32, 48, 48))
    model = make_model(folder, 3, (32, 32, 32))
    own = [sys.executable, "-W", "ignore", "-c", "from nnunet_transformers.cli import main; main()"]
    here = {"PYTHONPATH": str(Path(__file__).parents[1])}
    run(*own, "package", model, "-o", package, **here)
    run(*own, "package", "predict", package, images, folder / "here", "--device", "cpu", **here)

    start = time.perf_counter()
    python, installer = install(folder, package, with_hashes)
    installed = time.perf_counter() - start
    (site,) = (folder / "environment" / "lib").glob("python*/site-packages")
    (site / "sitecustomize.py").write_text(NO_NETWORK)
    path, version = json.loads(run(python, "-c", WHERE))
    if not Path(path).is_relative_to(site):
        raise RuntimeError(f"nnunet_transformers was imported from {path}, not from the package's wheel")
    start = time.perf_counter()
    said = run(python, "-W", "ignore", package / "predict.py", images, folder / "there", "--device", "cpu")
    return {
        "installer": installer,
        "python": version,
        "requirements": len((package / "requirements.txt").read_text().splitlines()) - 1,
        "distributions": len(list(site.glob("*.dist-info"))),
        "installed_s": round(installed),
        "predicted_s": round(time.perf_counter() - start),
        "said": said.strip().splitlines()[-1].partition(";")[0],
        "equal_voxels": equal_voxels(folder / "here" / "ct.nii.gz", folder / "there" / "ct.nii.gz"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to work in; made")
    parser.add_argument("--hashes", action="store_true", help="lock all requirements to their hashes first")
    given = parser.parse_args()
    row = measure(given.folder.resolve(), given.hashes)
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    rows = [old for old in rows if old["installer"] != row["installer"]] + [row]
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print(row)


if __name__ == "__main__":
    main()
