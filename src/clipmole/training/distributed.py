"""The processes that train one network together: one alone, or several started by `accelerate launch`.

In: the environment that a launcher sets. Out: which process this is, its device, and operations over all processes:
sums, gathered lists, averaged gradients. It is the only module that uses accelerate, and knows nothing of what is
trained.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from clipmole.errors import MissingDependency

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")


class Distributed:
    """This process among `size` processes, which all call the same methods in the same order.

    Attributes:
        rank: 0 to size - 1; rank 0 prints and writes.
        device: a CUDA device if there is one, else the CPU.
        workers: threads that this process may use to prepare images.

    Raises `MissingDependency` without accelerate.
    """

    def __init__(self) -> None:
        try:
            from accelerate import Accelerator
            from accelerate.utils import InitProcessGroupKwargs
        except ImportError as error:
            raise MissingDependency("accelerate", "train") from error
        # Precision is the configuration's, whatever the launcher was told; a batch is divided in `sampling`.
        cpu = not torch.cuda.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")
        # Accelerate prefers MPI where PyTorch has it, but processes that `mpirun` did not start would each train alone.
        backend = [InitProcessGroupKwargs(backend="gloo")] if cpu and "LOCAL_RANK" in os.environ else []
        self._accelerator: Accelerator = Accelerator(
            cpu=cpu, mixed_precision="no", gradient_accumulation_steps=1, kwargs_handlers=backend
        )
        self.rank: int = self._accelerator.process_index
        self.size: int = self._accelerator.num_processes
        self.device: torch.device = self._accelerator.device
        self.workers = min(16, max(2, (os.cpu_count() or 2) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def prepare(self, model: nn.Module) -> nn.Module:
        """The model on the device; with several processes its gradients are averaged over them."""
        return self._accelerator.prepare_model(model)  # type: ignore[no-any-return]

    def without_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Backward passes within leave the gradients of this process alone."""
        return self._accelerator.no_sync(model)  # type: ignore[no-any-return]

    def clip(self, parameters: list[nn.Parameter], norm: float) -> None:
        """Scale the gradients down to a common norm of `norm`, if it is larger."""
        self._accelerator.clip_grad_norm_(parameters, norm)

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes; same shape."""
        return values if self.size == 1 else self._accelerator.reduce(values, "sum")

    def gather(self, items: list[T]) -> list[T]:
        """The items of all processes, in the order of the ranks."""
        if self.size == 1:
            return items
        from accelerate.utils import gather_object

        return gather_object(items)  # type: ignore[no-any-return]

    def wait(self) -> None:
        """Wait until all processes have come here."""
        self._accelerator.wait_for_everyone()
