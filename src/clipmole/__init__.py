"""clipmole: tell AI-generated images from photographs.

    from clipmole import Detector
    detector = Detector.from_pretrained()
    print(detector.detect("photo.jpg").verdict)

Public names are loaded when they are first used, so that importing clipmole does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from clipmole.api import calibrate as calibrate
    from clipmole.api import compare as compare
    from clipmole.api import evaluate as evaluate
    from clipmole.api import train as train
    from clipmole.calibration import Calibration as Calibration
    from clipmole.config import MoLEConfig as MoLEConfig
    from clipmole.config import PreprocessConfig as PreprocessConfig
    from clipmole.config import TrainConfig as TrainConfig
    from clipmole.data import Folders as Folders
    from clipmole.data import read_data as read_data
    from clipmole.data.sample import Sample as Sample
    from clipmole.errors import CheckpointError as CheckpointError
    from clipmole.errors import ClipmoleError as ClipmoleError
    from clipmole.errors import ConfigError as ConfigError
    from clipmole.errors import DataError as DataError
    from clipmole.errors import ImageError as ImageError
    from clipmole.errors import MissingDependency as MissingDependency
    from clipmole.errors import Stopped as Stopped
    from clipmole.errors import WeightsError as WeightsError
    from clipmole.evaluation.recalibrate import Recalibration as Recalibration
    from clipmole.evaluation.records import Comparison as Comparison
    from clipmole.evaluation.records import EvaluationReport as EvaluationReport
    from clipmole.inference.detector import Detector as Detector
    from clipmole.inference.explain import Evidence as Evidence
    from clipmole.inference.explain import explain as explain
    from clipmole.inference.pipeline import ImageClassificationPipeline as ImageClassificationPipeline
    from clipmole.plumbing.progress import ProgressReporter as ProgressReporter
    from clipmole.provenance import Provenance as Provenance
    from clipmole.provenance import read_provenance as read_provenance
    from clipmole.records import Detection as Detection
    from clipmole.records import Thresholds as Thresholds
    from clipmole.records import Verdict as Verdict

_HOME = {
    "Calibration": "calibration",
    "CheckpointError": "errors",
    "ClipmoleError": "errors",
    "Comparison": "evaluation.records",
    "ConfigError": "errors",
    "DataError": "errors",
    "Detection": "records",
    "Detector": "inference.detector",
    "EvaluationReport": "evaluation.records",
    "Evidence": "inference.explain",
    "Folders": "data",
    "ImageClassificationPipeline": "inference.pipeline",
    "ImageError": "errors",
    "MissingDependency": "errors",
    "MoLEConfig": "config",
    "PreprocessConfig": "config",
    "ProgressReporter": "plumbing.progress",
    "Provenance": "provenance",
    "Recalibration": "evaluation.recalibrate",
    "Sample": "data.sample",
    "Stopped": "errors",
    "Thresholds": "records",
    "TrainConfig": "config",
    "Verdict": "records",
    "WeightsError": "errors",
    "calibrate": "api",
    "compare": "api",
    "evaluate": "api",
    "explain": "inference.explain",
    "read_data": "data",
    "read_provenance": "provenance",
    "train": "api",
}
__all__ = [
    "Calibration",
    "CheckpointError",
    "ClipmoleError",
    "Comparison",
    "ConfigError",
    "DataError",
    "Detection",
    "Detector",
    "EvaluationReport",
    "Evidence",
    "Folders",
    "ImageClassificationPipeline",
    "ImageError",
    "MissingDependency",
    "MoLEConfig",
    "PreprocessConfig",
    "ProgressReporter",
    "Provenance",
    "Recalibration",
    "Sample",
    "Stopped",
    "Thresholds",
    "TrainConfig",
    "Verdict",
    "WeightsError",
    "__version__",
    "calibrate",
    "compare",
    "evaluate",
    "explain",
    "read_data",
    "read_provenance",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clipmole' has no attribute {name!r}")
    value = getattr(import_module(f"clipmole.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
