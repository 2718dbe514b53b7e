"""The handwritten digits that scikit-learn ships, and a small network for them: real data, no download."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

TRAINING_IMAGES = 1400


def loaders(batch_size: int = 50) -> tuple[DataLoader, DataLoader]:
    """Return the training and the validation loader over 8 x 8 images with values from 0 to 1."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    training = TensorDataset(images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES])
    validation = TensorDataset(images[TRAINING_IMAGES:], labels[TRAINING_IMAGES:])
    return DataLoader(training, batch_size=batch_size, shuffle=True), DataLoader(validation, batch_size=batch_size)


def network() -> nn.Module:
    """Return a small convolutional network for ten digits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 64),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(64, 10),
    )
