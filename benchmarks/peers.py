"""The peers, each as its documentation says it is used on one machine without a GPU.

What writes in the background is tuned as far as its public options go: buffers are reused from save to save, and
staging runs beside the forward and backward where the peer can do that safely.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from contender import Contender
from states import Training
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse


class TorchSave(Contender):
    """``torch.save`` to a file."""

    def __init__(self, training: Training, directory: Path) -> None:
        super().__init__(directory)
        self._training = training

    def start(self, path: Path) -> None:
        """See ``Contender.start``."""
        torch.save(self._training.state(), path)


class Safetensors(TorchSave):
    """``safetensors.torch.save_file``: the tensors by name, and nothing else."""

    def start(self, path: Path) -> None:
        """See ``Contender.start``."""
        from safetensors.torch import save_file

        save_file(self._training.flat(), path)


class Lightning(TorchSave):
    """What Lightning's ``ModelCheckpoint`` writes with: ``TorchCheckpointIO``."""

    def __init__(self, training: Training, directory: Path) -> None:
        super().__init__(training, directory)
        from lightning.pytorch.plugins.io import TorchCheckpointIO

        self._io: Any = TorchCheckpointIO()

    def start(self, path: Path) -> Future[object] | None:
        """See ``Contender.start``."""
        self._io.save_checkpoint(self._training.state(), path)
        return None


class LightningAsync(Lightning):
    """``AsyncCheckpointIO`` around it."""

    def __init__(self, training: Training, directory: Path) -> None:
        super().__init__(training, directory)
        from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

        ended = self._ended = [Future[object]()]

        class Telling(TorchCheckpointIO):  # type: ignore[misc]
            """Tells of its end, which ``AsyncCheckpointIO`` has no way to ask for."""

            def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
                try:
                    super().save_checkpoint(*args, **kwargs)
                except BaseException as error:
                    ended[0].set_exception(error)
                    raise
                ended[0].set_result(None)

        self._io = AsyncCheckpointIO(Telling())

    def start(self, path: Path) -> Future[object]:
        """See ``Contender.start``."""
        self._ended[0] = Future()
        super().start(path)
        return self._ended[0]

    def close(self) -> None:
        """End the thread."""
        self._io.teardown()


class Distributed(Contender):
    """``torch.distributed.checkpoint.async_save``, which fsyncs; with the stager it makes for itself, as shipped."""

    fsyncs = True
    kind = AsyncCheckpointerType.THREAD

    def __init__(self, training: Training, directory: Path) -> None:
        super().__init__(directory)
        self._training = training
        self._stager = self._make_stager()
        self._staged: Future[None] | None = None

    def _make_stager(self) -> DefaultStager | None:
        return None

    def _writer(self, path: Path) -> dcp.FileSystemWriter | None:
        return None

    def start(self, path: Path) -> Future[object]:
        """See ``Contender.start``."""
        with _single_process_group() if self.kind is AsyncCheckpointerType.PROCESS else contextlib.nullcontext():
            answer = dcp.async_save(
                self._training.state(),
                checkpoint_id=path,
                storage_writer=self._writer(path),
                async_checkpointer_type=self.kind,
                async_stager=self._stager,
                no_dist=self.kind is AsyncCheckpointerType.THREAD,
            )
        if isinstance(answer, AsyncSaveResponse):
            self._staged = answer.staging_completion
            return answer.upload_completion
        return answer

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Wait for the staging: the optimizer would change what is being copied."""
        if self._staged is not None:
            self._staged.result()
        yield

    def close(self) -> None:
        """Let go of the stager's memory."""
        if self._stager is not None:
            self._stager.close()


class DistributedProcess(Distributed):
    """The same, writing in a process of its own."""

    kind = AsyncCheckpointerType.PROCESS


class DistributedTuned(Distributed):
    """The same with one ``DefaultStager`` for all saves, which copies during the forward and backward."""

    def _make_stager(self) -> DefaultStager:
        return DefaultStager(
            StagingOptions(
                use_pinned_memory=False,
                use_shared_memory=self.kind is AsyncCheckpointerType.PROCESS,
                use_async_staging=True,
                use_non_blocking_copy=False,
            )
        )


class DistributedTunedProcess(DistributedTuned):
    """The same, writing in a process of its own from shared memory."""

    kind = AsyncCheckpointerType.PROCESS


class TorchCheckpointing(Contender):
    """``torch_checkpointing.CheckpointManager`` with asynchronous saves, as its own defaults are without a GPU.

    But for O_DIRECT, its default: version 0.1.1 writes unaligned, which ext4 and XFS refuse (EINVAL).
    """

    def __init__(self, training: Training, directory: Path) -> None:
        super().__init__(directory)
        from torch_checkpointing import CheckpointManager
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        self._training = training
        storage = LocalFileSystemStorageConfig(use_direct_io=False)
        self._manager = CheckpointManager(CheckpointManager.Config(storage_config=storage))
        self._manager.prewarm_staging(training.state())

    def start(self, path: Path) -> Future[object]:
        """See ``Contender.start``."""
        future = self._manager.save(str(path), self._training.state())
        if future is None:
            raise AssertionError("an asynchronous manager returns a future")
        return future

    def guard(self) -> AbstractContextManager[object]:
        """Return the manager's own lock."""
        return self._manager.lock()

    def close(self) -> None:
        """End the manager's process."""
        self._manager.close()


class Accelerate(Contender):
    """``accelerate.Accelerator.save_state``."""

    def __init__(self, training: Training, directory: Path) -> None:
        super().__init__(directory)
        from accelerate import Accelerator

        self._accelerator = Accelerator(cpu=True)
        self._accelerator.prepare(training.model, training.optimizer)

    def start(self, path: Path) -> None:
        """See ``Contender.start``."""
        self._accelerator.save_state(str(path))


PEERS: dict[str, Callable[[Training, Path], Contender]] = {
    "torch.save": TorchSave,
    "safetensors save_file": Safetensors,
    "accelerate save_state": Accelerate,
    "Lightning ModelCheckpoint": Lightning,
    "Lightning AsyncCheckpointIO": LightningAsync,
    "dcp.async_save, thread": Distributed,
    "dcp.async_save, process": DistributedProcess,
    "dcp.async_save, DefaultStager, thread": DistributedTuned,
    "dcp.async_save, DefaultStager, process": DistributedTunedProcess,
    "torch-checkpointing": TorchCheckpointing,
}

_groups = itertools.count()


@contextmanager
def _single_process_group() -> Iterator[None]:
    """Have a process group of one for as long as a call needs it; the others are measured without."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("gloo", store=dist.PrefixStore(str(next(_groups)), dist.HashStore()), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
