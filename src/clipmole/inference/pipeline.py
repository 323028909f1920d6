"""A detector with the interface of a transformers image-classification pipeline: image in, labels with scores out.

In: what such a pipeline takes, except URLs: nothing is fetched. Out: lists of {"label", "score"}. It does not need
transformers; code that was written for one of its pipelines can use this one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from clipmole.errors import ImageError
from clipmole.images.loading import ImageSource
from clipmole.inference.detector import Detector
from clipmole.records import Detection, Verdict

Scores = list[dict[str, Any]]
SINGLE = (str, os.PathLike, bytes, Image.Image, np.ndarray)


class ImageClassificationPipeline:
    """Called like transformers' `ImageClassificationPipeline`, task "image-classification".

    The labels are "ai_generated" and "real"; their scores are the calibrated probability of being AI-generated (for a
    detector that is not calibrated, the sigmoid of its logit) and 1 minus that. The label with the higher score is not
    a verdict: verdicts have thresholds, with `uncertain` between them, and come from `Detector.detect`.

    Attributes:
        task: "image-classification".
        detector: the detector that scores.

    Args:
        model: a detector, or what `Detector.from_pretrained` takes.
        device: "cpu", "cuda", ...; ignored if a detector is given.

    Examples:
        >>> from clipmole import ImageClassificationPipeline
        >>> pipe = ImageClassificationPipeline()
        >>> [sorted(each) for each in pipe("photo.png")]
        [['label', 'score'], ['label', 'score']]
        >>> len(pipe(["photo.png", "photo.png"], top_k=1))
        2
    """

    task = "image-classification"

    def __init__(self, model: Detector | str = "default", *, device: str = "cpu") -> None:
        self.detector = model if isinstance(model, Detector) else Detector.from_pretrained(model, device=device)

    def __call__(self, inputs: ImageSource | Iterable[ImageSource], *, top_k: int = 5) -> Any:
        """Labels with their scores, highest first, for one image or for many.

        Args:
            inputs: an image (path, PIL image, bytes of a file, array), a list or tuple of images, or another iterable.
            top_k: how many labels at most.

        Returns:
            For one image a list of {"label": str, "score": float}; for a list or tuple a list of these; for another
            iterable an iterator of these, which takes images one by one.

        Raises:
            ImageError: an image cannot be scored.
        """
        if isinstance(inputs, SINGLE):
            return self._scores(self.detector.detect(inputs), top_k)
        found = self._each(inputs, top_k)
        return list(found) if isinstance(inputs, list | tuple) else found

    def _each(self, images: Iterable[ImageSource], top_k: int) -> Iterator[Scores]:
        for result in self.detector.stream(images):
            if isinstance(result, ImageError):
                raise result
            yield self._scores(result, top_k)

    @staticmethod
    def _scores(detection: Detection, top_k: int) -> Scores:
        generated = detection.probability
        if generated is None:
            generated = float(1 / (1 + np.exp(-np.float64(detection.logit))))
        scores = {Verdict.AI_GENERATED.value: generated, Verdict.REAL.value: 1 - generated}
        ranked = sorted(scores.items(), key=lambda item: item[1], reverse=True)
        return [{"label": label, "score": score} for label, score in ranked[:top_k]]
