"""Masked image modelling: pretraining on pictures without labels, by predicting what is hidden of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from tltasks.config.model import Checkpoint
from tltasks.config.stage import StagePlan
from tltasks.config.tasks.image import ImageModel, MaskedImageStage, UnlabelledImageData
from tltasks.data.splits import Columns, EncodedSplit, Split, row_title
from tltasks.errors import RecipeError
from tltasks.models.adapters import unwrap_model
from tltasks.models.loading import ModelLoader, initialise_head
from tltasks.results.result import ReportExample
from tltasks.tasks.base import Batch, Prediction
from tltasks.tasks.image.augmentation import ImageAugmentation
from tltasks.tasks.image.decoding import to_png
from tltasks.tasks.image.masking import HEAD, MaskedAutoencoder, Objective, choose_objective
from tltasks.tasks.image.preprocessing import ImageTask, open_preprocessing, read_image_config, read_pixels
from tltasks.tasks.self_supervised import EVALUATION, SelfSupervisedTask, rounded

Plan = StagePlan[ImageModel, UnlabelledImageData, MaskedImageStage]


@dataclass(frozen=True)
class MaskedImageModeling(
    ImageTask[UnlabelledImageData, MaskedImageStage],
    SelfSupervisedTask[ImageModel, UnlabelledImageData, MaskedImageStage],
):
    """One stage's view of MAE (models of type vit_mae) or SimMIM (vit, deit, swin, swinv2, focalnet)."""

    tag: ClassVar[str] = "masked-image-modeling"
    rows_name: ClassVar[str] = "images"
    head_name: ClassVar[str] = "its decoder"
    new_head_hint: ClassVar[str] = "use `stage: transfer`, which puts a new one on its encoder."

    objective: Objective

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: Plan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        if plan.model.as_ is not None:
            raise RecipeError(f"model.as: {plan.model.as_} is for image-classification; {cls.tag} has no such model.")
        config = read_image_config(MaskedAutoencoder.auto_class, plan, source)
        preprocessing = open_preprocessing(source, config, image_size=plan.model.image_size)
        size, name = preprocessing.size, source.display_name
        objective = choose_objective(config, plan.stage.mask, image_size=size, display_name=name)
        for key, value in objective.settings().items():
            setattr(config, key, value)
        return cls(plan, source, config, seed, preprocessing, objective)

    # -------------------------------------------------------------------------------------- model

    @property
    def auto_class(self) -> ModelLoader:
        return self.objective.auto_class

    def draw_head(self, model: PreTrainedModel, head: list[str], *, is_random: bool) -> None:
        initialise_head(model, head)
        self.objective.initialise(model, encoder=is_random)

    def head(self, model: nn.Module) -> list[str]:
        return [HEAD]

    @property
    def settings(self) -> dict[str, object]:
        return {"objective": self.objective.name, "mask_ratio": self.objective.ratio}

    # --------------------------------------------------------------------------------------- rows

    @property
    def cpu_batch_budget(self) -> int:
        return 4 * self.preprocessing.pass_rows

    @property
    def sequence_length(self) -> int | None:
        """The patches of an image, for plain vision transformers."""
        return None if hasattr(self.config, "window_size") else self.objective.side**2

    @property
    def cache_key(self) -> str:
        return self.preprocessing.cache_key(self.tag)

    def collate(self, columns: Columns, *, epoch: int) -> Batch:
        images, drawn = read_pixels(columns), {"seed": self.seed, "epoch": epoch}
        if epoch != EVALUATION:
            augment = ImageAugmentation(self.stage.augment)
            images = [augment(image, row=row, **drawn) for image, row in zip(images, columns["row"], strict=True)]
        masks = [self.objective.draw_mask(row=row, **drawn) for row in columns["row"]]
        return {
            "pixels": self.preprocessing.stack(images, columns["fitted"]),
            "masks": torch.from_numpy(np.stack(masks)),
        }

    # --------------------------------------------------------------------------------------- step

    def num_targets(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["pixels"]), device=batch["pixels"].device)

    def _row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.objective.row_losses(model, self.preprocessing.normalise(batch["pixels"]), batch["masks"])

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._row_losses(model, batch).mean()

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """The loss of each row and its features."""
        losses = self._row_losses(model, batch).tolist()
        features = self.embed(model, batch).cpu().numpy()
        return [
            {"prediction": rounded(loss), "loss": loss, "features": vector}
            for loss, vector in zip(losses, features, strict=True)
        ]

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.objective.features(unwrap_model(model), self.preprocessing.normalise(batch["pixels"]))

    # --------------------------------------------------------------------------------- evaluation

    def baselines(self, known: EncodedSplit, rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        """The mean colour of what is seen for every patch that is hidden."""
        mean_patch: list[Prediction] = []
        for start in range(0, len(rows), 64):
            batch = self.collate_eval(rows, range(start, min(start + 64, len(rows))))
            losses = self.objective.mean_patch_losses(self.preprocessing.normalise(batch["pixels"]), batch["masks"])
            mean_patch += [{"prediction": rounded(loss), "loss": loss} for loss in losses.tolist()]
        return {"mean_patch": mean_patch}

    def report_example(self, rows: datasets.Dataset, row: int, prediction: Prediction) -> ReportExample:
        """A picture that is hard to complete."""
        columns = rows[[row]]
        title, caption = f"loss {prediction['loss']:.3f}", row_title(rows, row)
        return ReportExample("image", title, caption, to_png(read_pixels(columns)[0]))
