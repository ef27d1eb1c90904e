"""Share trained models: packages without pickles, verified file by file, nnU-Net's own format, Hugging Face's hub."""

from .estimate import Estimate, estimate
from .load import LoadedModel, load_package, package_interfaces
from .manifest import Manifest, verify
from .onnx_export import export_onnx
from .package import Made, Options, make_package, package_zip
from .predict import CaseResult, predict_folder, select_device
from .pull import Pulled, pull
from .push import Pushed, push
from .segmenter import Segmenter, load_model
from .stock import export_stock

__all__ = [
    "CaseResult",
    "Estimate",
    "LoadedModel",
    "Made",
    "Manifest",
    "Options",
    "Pulled",
    "Pushed",
    "Segmenter",
    "estimate",
    "export_onnx",
    "export_stock",
    "load_model",
    "load_package",
    "make_package",
    "package_interfaces",
    "package_zip",
    "predict_folder",
    "pull",
    "push",
    "select_device",
    "verify",
]
