"""Masked image modelling: pretraining on pictures without labels, by predicting what is hidden of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PretrainedConfig

from tltasks.config.model import Checkpoint
from tltasks.config.stage import StageKind, StagePlan
from tltasks.config.tasks.image import ImageData, ImageModel, MaskedImageStage, UnlabelledImageData
from tltasks.data.splits import EncodedSplit, Split
from tltasks.errors import CheckpointError, RecipeError
from tltasks.models.adapters import find_lora_targets, merged
from tltasks.models.loading import check_loaded, initialise_head, load_pretrained, load_saved, read_config, save_adapter
from tltasks.results.result import ReportExample, Score
from tltasks.tasks.base import Batch, BuiltModel, Columns, InputKind, Prediction
from tltasks.tasks.image import augmentation, decoding
from tltasks.tasks.image.encoding import FEATURES, cache_key, encode_images, fit_pixels, pass_rows, read_pixels
from tltasks.tasks.image.masking import HEAD, MaskedAutoencoder, Objective, choose_objective
from tltasks.tasks.image.preprocessing import Preprocessing, load_processor, set_image_size
from tltasks.tasks.self_supervised import EVALUATION, label_namer, loss_rows, score_objective


@dataclass(frozen=True)
class MaskedImageModeling:
    """One stage's view of MAE (models of type vit_mae) or SimMIM (vit, deit, swin, swinv2, focalnet).

    The headline is the loss on images held out, under masks that are always the same. Beside it stand how well the
    encoder's features tell apart labels that the data may have (nearest neighbours, each image left out in turn), and
    how far features of different images spread, which goes to zero when the representation collapses.
    """

    tag: ClassVar[str] = "masked-image-modeling"
    headline: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    label: ClassVar[str | None] = None
    input_kind: ClassVar[InputKind] = InputKind("image", decoding.SUFFIXES)
    output_features: ClassVar[datasets.Features] = datasets.Features({"prediction": datasets.Value("float32")})

    source: Checkpoint
    config: PretrainedConfig
    preprocessing: Preprocessing
    objective: Objective
    stage: MaskedImageStage
    seed: int

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: StagePlan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        assert isinstance(plan.model, ImageModel)
        assert isinstance(plan.data, ImageData | UnlabelledImageData)
        assert isinstance(plan.stage, MaskedImageStage)
        if plan.model.as_ is not None:
            raise RecipeError(f"model.as: {plan.model.as_} is for image-classification; {cls.tag} has no such model.")
        config = read_config(
            MaskedAutoencoder.auto_class,
            source.name,
            shown=source.display_name,
            changes=plan.model.config if plan.stage.start == "checkpoint" else {},
            **source.arguments(),
        )
        if plan.model.image_size is not None:
            set_image_size(config, plan.model.image_size)
        processor = load_processor(source.name, config, image_size=plan.model.image_size, **source.arguments())
        preprocessing = Preprocessing(processor, name=source.display_name)
        objective = choose_objective(config, plan.stage.mask, image_size=preprocessing.size, shown=source.display_name)
        for key, value in objective.settings().items():
            setattr(config, key, value)
        return cls(source, config, preprocessing, objective, plan.stage, seed)

    def data_checks(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        return {}

    # -------------------------------------------------------------------------------------- model

    def starting_from(self, source: Checkpoint) -> Self:
        return dataclasses.replace(self, source=source)

    def as_pretrained(self) -> Self:
        return self

    def build(self, kind: StageKind) -> BuiltModel[Self]:
        random = kind.weights == "random"
        model, loaded = load_pretrained(
            self.objective.auto_class,
            self.config,
            self.source.name,
            shown=self.source.display_name,
            random=random,
            **self.source.arguments(),
        )
        lost = [name for name in loaded["newly_initialised"] if name.startswith(f"{HEAD}.")]
        if kind.head == "new":
            initialise_head(model, [HEAD])
            self.objective.initialise(model, encoder=random)
        elif lost:
            raise CheckpointError(
                f"model {self.source.display_name}: has no weights for its decoder ({', '.join(lost[:3])}, …); "
                "use `stage: transfer`, which puts a new one on its encoder."
            )
        share = check_loaded(model, loaded["newly_initialised"], head=[HEAD], shown=self.source.display_name)
        provenance = {
            "name": self.source.display_name,
            "revision": self.source.revision,
            "model_type": self.config.model_type,
            "objective": "MAE" if isinstance(self.objective, MaskedAutoencoder) else "SimMIM",
            "mask_ratio": self.objective.ratio,
            **loaded,
            "loaded_share": share,
        }
        return BuiltModel(model, self, provenance)

    @property
    def architecture(self) -> str:
        return str(self.config.model_type)

    def head(self, model: nn.Module) -> list[str]:
        return [HEAD]

    def lora_targets(self, model: nn.Module) -> list[str]:
        return find_lora_targets(model, head=self.head(model))

    def save_setup(self, folder: Path) -> None:
        self.config.save_pretrained(folder)
        self.preprocessing.processor.save_pretrained(folder)

    def save(self, folder: Path, model: nn.Module, *, adapter: bool) -> None:
        self.save_setup(folder)
        if adapter:
            save_adapter(model, folder)
        else:
            merged(model).save_pretrained(folder)

    def reload(self, folder: Path) -> nn.Module:
        source = self.source
        return load_saved(self.objective.auto_class, folder, base=source.name, config=self.config, **source.arguments())

    # --------------------------------------------------------------------------------------- rows

    @property
    def features(self) -> datasets.Features:
        return datasets.Features({**FEATURES, "label": datasets.Value("string")})

    @property
    def cpu_batch_budget(self) -> int:
        return 4 * pass_rows(self.preprocessing)

    @property
    def sequence_length(self) -> int | None:
        """The patches of an image, for plain vision transformers."""
        return None if hasattr(self.config, "window_size") else self.objective.side**2

    @property
    def cache_key(self) -> str:
        return cache_key(self.preprocessing, self.tag)

    def preprocess(self, split: Split) -> Callable[[Columns], Columns]:
        name = label_namer(split)

        def encode(batch: Columns) -> Columns:
            labels = [name(label) for label in batch.get("label", [None] * len(batch["row"]))]
            return {
                **encode_images(batch["image"], self.preprocessing, split.folder),
                "label": labels,
                "row": batch["row"],
            }

        return encode

    def lengths(self, rows: datasets.Dataset) -> Sequence[int] | None:
        return None

    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        columns = rows[list(indices)]
        return self._batch(columns, [read_pixels(columns, i) for i in range(len(indices))], EVALUATION)

    def collate_train(self, rows: datasets.Dataset, indices: Sequence[int], *, epoch: int) -> Batch:
        columns, augment = rows[list(indices)], augmentation.ImageAugmentation(self.stage.augment)
        pixels = [
            augment(read_pixels(columns, i), seed=self.seed, epoch=epoch, row=int(row)) for i, row in enumerate(indices)
        ]
        return self._batch(columns, pixels, epoch)

    def _batch(self, columns: Columns, pixels: list[Tensor], epoch: int) -> Batch:
        masks = [self.objective.draw_mask(seed=self.seed, epoch=epoch, row=row) for row in columns["row"]]
        return {
            "pixels": fit_pixels(pixels, columns["fitted"], self.preprocessing),
            "masks": torch.from_numpy(np.stack(masks)),
        }

    # --------------------------------------------------------------------------------------- step

    def num_targets(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["pixels"]), device=batch["pixels"].device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.objective.row_losses(model, self.preprocessing.normalise(batch["pixels"]), batch["masks"]).mean()

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """The loss of each row, rounded so that other orders of summation do not show, and its features."""
        losses = self.objective.row_losses(model, self.preprocessing.normalise(batch["pixels"]), batch["masks"])
        features = self.embed(model, batch).cpu().numpy()
        return [
            {"prediction": float(f"{loss:.3g}"), "loss": loss, "features": vector}
            for loss, vector in zip(losses.tolist(), features, strict=True)
        ]

    def to_output(self, prediction: Prediction, *, top_k: int) -> dict[str, Any]:
        return {"prediction": prediction["prediction"]}

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.objective.features(model, self.preprocessing.normalise(batch["pixels"]))

    # --------------------------------------------------------------------------------- evaluation

    def references(self, rows: datasets.Dataset) -> list[str | None]:
        return list(rows["label"])

    def row_scores(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> NDArray[np.float64]:
        return loss_rows(predictions)

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], *, intervals: bool) -> Score:
        return score_objective(predictions, references, values={}, what="images", intervals=intervals, seed=self.seed)

    def baselines(self, train_references: list[Any], rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        flat: list[Prediction] = []
        for start in range(0, len(rows), 64):
            batch = self.collate_eval(rows, range(start, min(start + 64, len(rows))))
            losses = self.objective.flat_losses(self.preprocessing.normalise(batch["pixels"]), batch["masks"])
            flat += [{"prediction": float(f"{loss:.3g}"), "loss": loss} for loss in losses.tolist()]
        return {"mean_patch": flat}

    def columns(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> Columns:
        return {
            "prediction": [p["prediction"] for p in predictions],
            "reference": list(references),
            "loss": [p["loss"] for p in predictions],
        }

    def report_examples(
        self, rows: datasets.Dataset, predictions: Sequence[Prediction], references: Sequence[Any]
    ) -> list[ReportExample]:
        """The pictures that are hardest to complete."""
        hardest = sorted(range(len(predictions)), key=lambda i: -predictions[i]["loss"])[:12]
        shown = []
        for i in hardest:
            columns = rows[[i]]
            title, caption = f"loss {predictions[i]['loss']:.3f}", f"row {columns['row'][0]}"
            shown.append(ReportExample("image", title, caption, decoding.to_png(read_pixels(columns, 0))))
        return shown
