"""The cases of the bit-exact matrix: small trainings, each with something that a run's future depends on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, WeightedRandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from safepoint import when
from safepoint.data import ResumableSampler

SAMPLES = 18
FEATURES = 6
BATCH = 4


class Points(Dataset[Any]):
    """Points and what is to be learnt of them, the same in every life."""

    def __init__(self) -> None:
        drawn = torch.Generator().manual_seed(5)
        self.points = torch.randn(SAMPLES, FEATURES, generator=drawn)
        self.targets = torch.randn(SAMPLES, 1, generator=drawn)

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.points[index], self.targets[index]


class Augmented(Points):
    """Points, each moved by what all the global generators draw, and one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.own = np.random.default_rng(random.randrange(1000))

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        moved = random.random() + np.random.normal() + self.own.normal()
        return self.points[index] + moved * torch.rand(FEATURES), self.targets[index]


def network() -> nn.Sequential:
    """Return a network with buffers and dropout."""
    return nn.Sequential(
        nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 8), nn.Linear(8, 1)
    )


def momentum(parameters: Any) -> optim.Optimizer:
    """Return SGD with momentum."""
    return optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True)


def shuffled(data: Dataset[Any], **options: Any) -> DataLoader[Any]:
    """Return an ordinary loader."""
    return DataLoader(data, BATCH, shuffle=True, drop_last=False, **options)


Loader = Callable[[Any], DataLoader[Any]]


class Training:
    """A network, an optimizer, a loader; one batch is one step. The cases are made by saying what is different."""

    epochs = 3
    save = when.every(steps=3) | when.every(epochs=1)
    window = 1

    def __init__(
        self,
        moments: Callable[[], None],
        *,
        optimizer: Callable[[Any], optim.Optimizer] = momentum,
        scheduler: Callable[[Any], Any] | None = None,
        per_step: bool = False,
        loader: Loader = shuffled,
        data: Callable[[], Points] = Points,
        **options: Any,
    ) -> None:
        self.moments = moments
        self.data = data()
        self.model = self.network()
        self.optimizer = optimizer(self.model.parameters())
        self.loader = loader(self.data)
        self.scheduler = None if scheduler is None else scheduler(self.optimizer)
        self.per_step = per_step
        self.micro = 0
        self.options: dict[str, Any] = {"blocking": True, **options}

    @property
    def state(self) -> dict[str, Any]:
        """What is saved."""
        found = {"model": self.model, "optimizer": self.optimizer, "loader": self.loader}
        if isinstance(self.data, Augmented):
            found["own"] = self.data.own
        return found if self.scheduler is None else {**found, "scheduler": self.scheduler}

    def network(self) -> nn.Module:
        """Return the network."""
        return network()

    def begin(self, epoch: int) -> None:
        """Begin an epoch, or go on with it."""
        self.model.train()

    def batches(self) -> Iterable[Any]:
        """Return what an epoch iterates over."""
        return self.loader

    def loss(self, batch: Any) -> torch.Tensor:
        """Return the loss of a batch."""
        points, targets = batch
        return nn.functional.mse_loss(self.model(points), targets)

    def advance(self, batch: Any) -> tuple[float, bool]:
        """Train on a batch; return its loss, and whether the optimizer has made a step."""
        loss = self.loss(batch)
        self.backward(loss)
        self.moments()
        self.micro += 1
        is_step = self.micro == self.window
        if is_step:
            self.step()
            self.micro = 0
        return loss.item(), is_step

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradients."""
        loss.backward()

    def step(self) -> None:
        """Make the optimizer's step."""
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.scheduler is not None and self.per_step:
            self.scheduler.step()

    def end(self, epoch: int) -> dict[str, float]:
        """End an epoch; return what was measured."""
        self.micro = 0
        self.optimizer.zero_grad()  # of a window that the epoch's end has cut off
        if self.scheduler is not None and not self.per_step:
            self.scheduler.step()
        return {"lr": float(self.optimizer.param_groups[0]["lr"])}


class Accumulating(Training):
    """Several batches make a step; the last window of an epoch is given up."""

    window = 2
    save = when.every(steps=1) | when.every(epochs=1)


class Crossing(Accumulating):
    """A window goes on over the end of an epoch: exact wherever a save is one of whole steps."""

    save = when.every(steps=2)

    def end(self, epoch: int) -> dict[str, float]:
        """Keep the gradients, and what is left of the window."""
        return {}


class Validated(Training):
    """Between two epochs, a shuffled loader of its own is gone through, which draws from the global generators too."""

    def __init__(self, moments: Callable[[], None], **given: Any) -> None:
        super().__init__(moments, **given)
        self.validation = shuffled(Points())

    def end(self, epoch: int) -> dict[str, float]:
        """Validate; the learning rate follows what comes out."""
        self.model.eval()
        total = 0.0
        with torch.no_grad():
            for points, targets in self.validation:
                total += float(nn.functional.mse_loss(self.model(points + torch.rand(1)), targets, reduction="sum"))
                self.moments()
        assert self.scheduler is not None
        self.scheduler.step(total)
        return {"val_loss": total, "lr": float(self.optimizer.param_groups[0]["lr"])}


class ValidatedWithState(Validated):
    """The validation's loader is in the state, too, and it validates in the midst of the epoch as well."""

    @property
    def state(self) -> dict[str, Any]:
        """With both loaders."""
        return {**super().state, "validation_loader": self.validation}

    def step(self) -> None:
        """Make a step, and validate now and then."""
        super().step()
        if random.random() < 0.3:
            self.end(0)
            self.model.train()


class Autocast(Training):
    """bfloat16 on the CPU."""

    def loss(self, batch: Any) -> torch.Tensor:
        """Return it, computed in bfloat16."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().loss(batch).float()


class Scaled(Autocast):
    """A gradient scaler that grows until it overflows, again and again: steps are skipped."""

    def __init__(self, moments: Callable[[], None], **given: Any) -> None:
        super().__init__(moments, **given)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**124, growth_factor=4.0, growth_interval=2)

    @property
    def state(self) -> dict[str, Any]:
        """With the scaler."""
        return {**super().state, "scaler": self.scaler}

    def backward(self, loss: torch.Tensor) -> None:
        """Compute scaled gradients."""
        self.scaler.scale(loss).backward()

    def step(self) -> None:
        """Make a step, or none."""
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


class Adversarial(Training):
    """Two networks with an optimizer each, and noise from generators of the program's own."""

    def __init__(self, moments: Callable[[], None], **given: Any) -> None:
        super().__init__(moments, **given)
        self.generator = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, FEATURES))
        self.second = optim.Adam(self.generator.parameters(), lr=0.01, amsgrad=True)
        self.noise = torch.Generator().manual_seed(torch.initial_seed())
        self.choice = random.Random(torch.initial_seed())

    @property
    def state(self) -> dict[str, Any]:
        """With both, and the generators."""
        own = {"generator": self.generator, "second": self.second, "noise": self.noise, "choice": self.choice}
        return {**super().state, **own}

    def advance(self, batch: Any) -> tuple[float, bool]:
        """Train one against the other."""
        points, _ = batch
        made = self.generator(torch.randn(len(points), 3, generator=self.noise) * self.choice.random())
        told_apart = (self.model(points) - self.model(made.detach())).mean()
        told_apart.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.moments()
        taken_for = self.model(made).mean()
        taken_for.backward()
        self.second.step()
        self.second.zero_grad()
        self.optimizer.zero_grad()
        return told_apart.item(), True


class Averaged(Training):
    """An exponential moving average from the first step, an average of weights and its learning rate from epoch 1."""

    def __init__(self, moments: Callable[[], None], **given: Any) -> None:
        super().__init__(moments, **given)
        self.ema = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
        self.swa = AveragedModel(self.model)
        self.swa_rate = SWALR(self.optimizer, swa_lr=0.01, anneal_epochs=2)

    @property
    def state(self) -> dict[str, Any]:
        """With the averages."""
        return {**super().state, "ema": self.ema, "swa": self.swa, "swa_rate": self.swa_rate}

    def step(self) -> None:
        """Make a step."""
        super().step()
        self.ema.update_parameters(self.model)

    def end(self, epoch: int) -> dict[str, float]:
        """Average; at the very end, measure anew what batch normalisation needs."""
        measured = super().end(epoch)
        if epoch >= 1:
            self.swa.update_parameters(self.model)
            self.swa_rate.step()
        if epoch == self.epochs - 1:
            update_bn(DataLoader(self.data, BATCH), self.swa)
        return measured


class Searching(Training):
    """LBFGS, which calls the loss as often as it likes."""

    def __init__(self, moments: Callable[[], None], **given: Any) -> None:
        super().__init__(moments, optimizer=lambda found: optim.LBFGS(found, lr=0.1, max_iter=4), **given)

    def advance(self, batch: Any) -> tuple[float, bool]:
        """Make a step, of several evaluations."""

        def closure() -> float:
            self.optimizer.zero_grad()
            loss = self.loss(batch)
            loss.backward()
            self.moments()
            return loss.item()

        return float(self.optimizer.step(closure)), True  # type: ignore[arg-type]


class Normalised(Training):
    """A spectral norm, whose buffers turn with every forward; a weight norm; tied weights; a recurrent part."""

    def network(self) -> nn.Module:
        """Return such a network."""
        first = nn.utils.parametrizations.spectral_norm(nn.Linear(FEATURES, 8))
        second = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        third, fourth = nn.Linear(8, 8), nn.Linear(8, 8)
        fourth.weight = third.weight
        return nn.Sequential(first, nn.RReLU(), second, third, nn.AlphaDropout(0.2), fourth, nn.Linear(8, 1))


class Thawing(Training):
    """The first layer, which comes from elsewhere, is frozen in the first epoch."""

    def network(self) -> nn.Module:
        """Return a network whose first layer is the same in every life."""
        made = network()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made[0].reset_parameters()  # type: ignore[operator]
        return made

    def begin(self, epoch: int) -> None:
        """Thaw."""
        super().begin(epoch)
        for parameter in self.model[0].parameters():  # type: ignore[index]
            parameter.requires_grad_(epoch > 0)


class Compiled(Training):
    """A compiled network, with what costs no compiler."""

    def network(self) -> nn.Module:
        """Return it."""
        return torch.compile(network(), backend="eager")  # type: ignore[return-value]


class Sparse(Training):
    """Sparse gradients."""

    def __init__(self, moments: Callable[[], None], **given: Any) -> None:
        super().__init__(moments, optimizer=lambda found: optim.SparseAdam(list(found)), **given)

    def network(self) -> nn.Module:
        """Return a table."""
        return nn.Embedding(8, 1, sparse=True)

    def loss(self, batch: Any) -> torch.Tensor:
        """Return how far the table is from its targets."""
        points, targets = batch
        return nn.functional.mse_loss(self.model((points[:, 0].abs() * 3).long() % 8), targets)


class Zipped(Training):
    """Two shuffled loaders at once: what they draw at their beginnings is mixed up."""

    def __init__(self, moments: Callable[[], None], loader: Loader = shuffled, **given: Any) -> None:
        super().__init__(moments, loader=loader, **given)
        self.second_loader = loader(Points())

    @property
    def state(self) -> dict[str, Any]:
        """With both loaders."""
        return {**super().state, "second_loader": self.second_loader}

    def batches(self) -> Iterable[Any]:
        """Return the batches of both, joined."""
        for both in zip(self.loader, self.second_loader, strict=True):
            yield tuple(map(torch.cat, zip(*both, strict=True)))


class Endless(Training):
    """One loop over the steps, and no epochs."""

    epochs = 1
    save = when.every(steps=1)

    def batches(self) -> Iterable[Any]:
        """Return batches, again and again: as many as there are steps left to do."""
        return self._left()

    def _left(self) -> Iterator[Any]:
        while True:
            for batch in self.loader:
                if self.is_done():
                    return
                yield batch

    def is_done(self) -> bool:
        """Tell whether the schedule is at its end."""
        assert self.scheduler is not None
        return bool(self.scheduler.last_epoch >= 13)


class Everything(Averaged, Scaled, Accumulating):
    """Averages, a scaler, bfloat16 and windows at once."""


Make = Callable[[Callable[[], None]], Training]


def case(kind: Callable[..., Training] = Training, **given: Any) -> Make:
    """Return what makes such a training."""
    return lambda moments: kind(moments, **given)


def one_cycle(optimizer: optim.Optimizer) -> lr_scheduler.OneCycleLR:
    """Return a schedule over all steps, of the momentum too."""
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=100)


def in_turn(optimizer: optim.Optimizer) -> lr_scheduler.SequentialLR:
    """Return two schedules, one after the other."""
    return lr_scheduler.SequentialLR(
        optimizer,
        [lr_scheduler.LinearLR(optimizer, total_iters=4), lr_scheduler.CosineAnnealingLR(optimizer, 12)],
        milestones=[4],
    )


def together(optimizer: optim.Optimizer) -> lr_scheduler.ChainedScheduler:
    """Return two schedules at once."""
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ExponentialLR(optimizer, 0.97), lr_scheduler.LambdaLR(optimizer, lambda at: 1 / (1 + at))],
        optimizer=optimizer,
    )


def sampled(data: Any, **options: Any) -> DataLoader[Any]:
    """Return a loader with the sampler that Safepoint offers."""
    return DataLoader(data, BATCH, sampler=ResumableSampler(data, seed=4), **options)


def stateful(data: Any, **options: Any) -> DataLoader[Any]:
    """Return a loader of torchdata's."""
    loader: DataLoader[Any] = StatefulDataLoader(data, BATCH, shuffle=True, **options)
    return loader


def weighted(data: Any) -> DataLoader[Any]:
    """Return a loader that draws by weight, from a generator of its own."""
    own = torch.Generator().manual_seed(torch.initial_seed())
    drawn = WeightedRandomSampler(range(1, SAMPLES + 1), SAMPLES, generator=own)
    return DataLoader(data, BATCH, sampler=drawn)


def batched(data: Any) -> DataLoader[Any]:
    """Return a loader with a batch sampler."""
    return DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data, replacement=True), BATCH, drop_last=True))


OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "Adadelta": optim.Adadelta,
    "Adafactor": optim.Adafactor,
    "Adagrad": optim.Adagrad,
    "Adam amsgrad": lambda found: optim.Adam(found, amsgrad=True),
    "AdamW foreach": lambda found: optim.AdamW(found, lr=0.01, foreach=True),
    "AdamW fused": lambda found: optim.AdamW(found, lr=0.01, fused=True),
    "AdamW of a tensor rate": lambda found: optim.AdamW(found, lr=torch.tensor(0.01), foreach=False),
    "Adamax": optim.Adamax,
    "ASGD": lambda found: optim.ASGD(found, t0=3),
    "NAdam": optim.NAdam,
    "RAdam": optim.RAdam,
    "RMSprop": lambda found: optim.RMSprop(found, momentum=0.9, centered=True),
    "Rprop": optim.Rprop,
    "SGD fused": lambda found: optim.SGD(found, lr=0.05, momentum=0.9, fused=True),
}
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "OneCycleLR": one_cycle,
    "SequentialLR": in_turn,
    "ChainedScheduler": together,
    "CyclicLR": lambda found: lr_scheduler.CyclicLR(found, 0.01, 0.1, step_size_up=4, cycle_momentum=True),
    "CosineAnnealingWarmRestarts": lambda found: lr_scheduler.CosineAnnealingWarmRestarts(found, 5),
    "PolynomialLR": lambda found: lr_scheduler.PolynomialLR(found, 15),
}
STEP_LR = {"scheduler": lambda found: lr_scheduler.StepLR(found, 1, 0.5)}
PLATEAU = {"scheduler": lambda found: lr_scheduler.ReduceLROnPlateau(found, patience=0, factor=0.3)}
LOADERS: dict[str, Loader] = {
    "in order": lambda data: DataLoader(data, BATCH),
    "two workers": lambda data: shuffled(data, num_workers=2),
    "workers that stay": lambda data: shuffled(data, num_workers=2, persistent_workers=True),
    "ResumableSampler": sampled,
    "ResumableSampler, two workers": lambda data: sampled(data, num_workers=2),
    "StatefulDataLoader": stateful,
    "StatefulDataLoader, two workers": lambda data: stateful(data, num_workers=2),
    "StatefulDataLoader, workers that stay": lambda data: stateful(data, num_workers=2, persistent_workers=True),
    "weights": weighted,
    "a batch sampler": batched,
}
CASES: dict[str, Make] = {
    "plain": case(),
    "StepLR": case(**STEP_LR),
    "accumulation": case(Accumulating, **STEP_LR),
    "accumulation over epochs": case(Crossing),
    "ReduceLROnPlateau": case(Validated, **PLATEAU),
    "validation in the midst": case(ValidatedWithState, **PLATEAU),
    "bfloat16": case(Autocast, optimizer=OPTIMIZERS["AdamW foreach"]),
    "GradScaler": case(Scaled),
    "two optimizers": case(Adversarial),
    "EMA and SWA": case(Averaged),
    "LBFGS": case(Searching),
    "norms, ties": case(Normalised),
    "thawing": case(Thawing),
    "thawing, excluded": case(Thawing, exclude_frozen=True),
    "compiled": case(Compiled),
    "sparse": case(Sparse),
    "augmentation": case(data=Augmented),
    "augmentation, StatefulDataLoader": case(data=Augmented, loader=stateful),
    "in the background": case(blocking=False),
    "deferred": case(staging="deferred", blocking=False),
    "deferred, Adam": case(staging="deferred", optimizer=OPTIMIZERS["AdamW fused"], scheduler=one_cycle, per_step=True),
    "streamed": case(max_host_bytes=1),  # which a warning tells
    "two loaders": case(Zipped),
    "two loaders, workers": case(Zipped, loader=LOADERS["two workers"]),
    "two loaders, StatefulDataLoader": case(Zipped, loader=stateful),
    "endless": case(Endless, scheduler=SCHEDULERS["PolynomialLR"], per_step=True),
    "endless, workers": case(
        Endless, scheduler=SCHEDULERS["PolynomialLR"], per_step=True, loader=LOADERS["workers that stay"]
    ),
    "everything": case(Everything, data=Augmented, staging="deferred", blocking=False),
    "everything, workers": case(Everything, loader=LOADERS["workers that stay"], blocking=False),
    **{f"optimizer {name}": case(optimizer=made) for name, made in OPTIMIZERS.items()},
    **{f"scheduler {name}": case(scheduler=made, per_step=True) for name, made in SCHEDULERS.items()},
    **{f"loader {name}": case(loader=made) for name, made in LOADERS.items()},
}
"""What is trained, by the names that the tests have for it."""
