"""Checkpoints of other programs, made by those programs."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from models import FRAMEWORKS, fit

TRAINER_LOSSES = (0.5, 0.25, 0.75)


def of_lightning(directory: Path) -> Path:
    """Train with Lightning's own callback, which keeps the best two of six epochs by ``val_loss``."""
    fit(FRAMEWORKS[0], FRAMEWORKS[0].original(directory, monitor="val_loss", filename="{epoch}", save_top_k=2))
    return directory


def of_torch(path: Path, **state: Any) -> Path:
    """Save a state as a plain loop does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": torch.nn.Linear(2, 2).state_dict(), **state}, path)
    return path


def of_safetensors(path: Path) -> Path:
    """Save nothing but tensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({"weight": torch.ones(3)}, path)
    return path


def of_dcp(directory: Path) -> Path:
    """Save a directory of shards."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it remarks that there is one process
        dcp.save({"weight": torch.ones(3)}, checkpoint_id=directory, no_dist=True)
    return directory


def of_trainer(directory: Path) -> Path:
    """Train with Hugging Face's Trainer: a checkpoint every two steps, each evaluated, by ``TRAINER_LOSSES``."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from transformers import Trainer, TrainingArguments

    class Model(torch.nn.Module):
        """Its loss in evaluation follows a script."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))
            self.losses = iter(TRAINER_LOSSES)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            """Return a loss that moves the weights, or the next of the script."""
            loss = (self.weight * x).square().mean()
            if not self.training:
                loss = loss.new_tensor(next(self.losses))
            return {"loss": loss, "logits": x}

    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=6,
        save_steps=2,
        eval_steps=2,
        eval_strategy="steps",
        per_device_train_batch_size=1,
        per_device_eval_batch_size=1,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    example = {"x": torch.ones(3), "labels": torch.zeros(1)}
    Trainer(Model(), arguments, train_dataset=[example] * 8, eval_dataset=[example]).train()
    return directory


class _Pairs(torch.utils.data.Dataset[Any]):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor(index % 2)}


def of_bert(directory: Path, layers: int, steps: int, **options: Any) -> Any:
    """Train a tiny model of Hugging Face's by its Trainer, as ``options`` say, and return the model."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

        sizes = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": layers, "num_attention_heads": 2}
        model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=8, max_position_embeddings=8))
        arguments = TrainingArguments(
            str(directory), max_steps=steps, eval_strategy="steps", per_device_train_batch_size=4, report_to=[],
            use_cpu=True, disable_tqdm=True, learning_rate=0.125, **options,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=_Pairs(), eval_dataset=_Pairs()).train()
    return model
