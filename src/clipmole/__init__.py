"""clipmole: tell AI-generated images from photographs.

    from clipmole import Detector
    detector = Detector.from_pretrained()
    print(detector.detect("photo.jpg").verdict)

The public names are loaded when they are first used, so that importing clipmole does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from clipmole.calibration import Calibration as Calibration
    from clipmole.config import MoLEConfig as MoLEConfig
    from clipmole.config import PreprocessConfig as PreprocessConfig
    from clipmole.config import TrainConfig as TrainConfig
    from clipmole.errors import ClipmoleError as ClipmoleError
    from clipmole.inference.detector import Detector as Detector
    from clipmole.records import Detection as Detection
    from clipmole.records import Verdict as Verdict

_HOME = {
    "Calibration": "calibration",
    "ClipmoleError": "errors",
    "Detection": "records",
    "Detector": "inference.detector",
    "MoLEConfig": "config",
    "PreprocessConfig": "config",
    "TrainConfig": "config",
    "Verdict": "records",
}
__all__ = [
    "Calibration",
    "ClipmoleError",
    "Detection",
    "Detector",
    "MoLEConfig",
    "PreprocessConfig",
    "TrainConfig",
    "Verdict",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clipmole' has no attribute {name!r}")
    return getattr(import_module(f"clipmole.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
