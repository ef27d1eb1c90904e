"""Whether an exporter is tracing, in every torch version that we support."""

from __future__ import annotations

import torch

is_exporting = getattr(torch.compiler, "is_exporting", torch.onnx.is_in_onnx_export)
