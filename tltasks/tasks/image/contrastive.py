"""Contrastive learning on pictures without labels: two views of an image are told from views of other images."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoModelForImageClassification, PretrainedConfig

from tltasks.config.model import Checkpoint
from tltasks.config.stage import StageKind, StagePlan
from tltasks.config.tasks.image import ContrastiveStage, ImageModel, UnlabelledImageData
from tltasks.data.splits import EncodedSplit, Split
from tltasks.errors import CheckpointError
from tltasks.models.adapters import find_lora_targets, merged
from tltasks.models.loading import check_loaded, load_pretrained, load_saved, read_config, save_adapter
from tltasks.results.result import ReportExample, Score
from tltasks.tasks.base import Batch, BuiltModel, Columns, InputKind, Prediction
from tltasks.tasks.image import decoding
from tltasks.tasks.image.contrastive_objective import ProjectedModel, Projection, TwoViews, nt_xent, open_projected
from tltasks.tasks.image.encoding import FEATURES, cache_key, encode_images, fit_pixels, pass_rows, read_pixels
from tltasks.tasks.image.preprocessing import Preprocessing, load_processor, set_image_size
from tltasks.tasks.self_supervised import EVALUATION, label_namer, loss_rows, score_objective

DEFAULT_WIDTH = 128
"""Of the projection."""


@dataclass(frozen=True)
class ContrastiveImage:
    """One stage's view of SimCLR, over the backbone of any image classifier.

    The negatives of an image are the other images of its `loss_group`, on however many devices. The headline is the
    loss on images held out, in groups of as many rows in their order (the last one filled up with rows before it),
    under views that are always the same. Beside it stand how often both views of an image are each other's nearest, how
    well features tell apart labels that the data may have, and how far features of different images spread.
    Source: Chen et al., https://arxiv.org/abs/2002.05709.
    """

    tag: ClassVar[str] = "contrastive-image"
    headline: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    label: ClassVar[str | None] = None
    input_kind: ClassVar[InputKind] = InputKind("image", decoding.SUFFIXES)
    output_features: ClassVar[datasets.Features] = datasets.Features({"prediction": datasets.Value("float32")})

    source: Checkpoint
    config: PretrainedConfig
    preprocessing: Preprocessing
    projected: ProjectedModel
    views: TwoViews
    stage: ContrastiveStage
    seed: int

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: StagePlan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        assert isinstance(plan.model, ImageModel)
        assert isinstance(plan.data, UnlabelledImageData)
        stage = plan.stage
        assert isinstance(stage, ContrastiveStage)
        config = read_config(
            AutoModelForImageClassification,
            source.name,
            shown=source.display_name,
            changes=plan.model.config if stage.start == "checkpoint" else {},
            **source.arguments(),
        )
        if plan.model.image_size is not None:
            set_image_size(config, plan.model.image_size)
        config.projection_width = stage.projection or getattr(config, "projection_width", None) or DEFAULT_WIDTH
        projected = open_projected(config, width=config.projection_width, shown=source.display_name)
        processor = load_processor(source.name, config, image_size=plan.model.image_size, **source.arguments())
        preprocessing = Preprocessing(processor, name=source.display_name)
        return cls(
            source, config, preprocessing, projected, TwoViews(stage.views, size=preprocessing.size), stage, seed
        )

    def data_checks(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        return {}

    # -------------------------------------------------------------------------------------- model

    def starting_from(self, source: Checkpoint) -> Self:
        return dataclasses.replace(self, source=source)

    def as_pretrained(self) -> Self:
        return self

    def build(self, kind: StageKind) -> BuiltModel[Self]:
        model, loaded = load_pretrained(
            self.projected,
            self.config,
            self.source.name,
            shown=self.source.display_name,
            random=kind.weights == "random",
            **self.source.arguments(),
        )
        name = self.projected.head
        lost = [key for key in loaded["newly_initialised"] if key.startswith(f"{name}.")]
        if kind.head == "new":
            projection = model.get_submodule(name)
            assert isinstance(projection, Projection)
            projection.reset_parameters()
        elif lost:
            raise CheckpointError(
                f"model {self.source.display_name}: has no weights for its projection ({', '.join(lost[:3])}, …); "
                "use `stage: transfer`, which puts a new one on its backbone."
            )
        share = check_loaded(model, loaded["newly_initialised"], head=[name], shown=self.source.display_name)
        provenance = {
            "name": self.source.display_name,
            "revision": self.source.revision,
            "model_type": self.config.model_type,
            "objective": "SimCLR",
            "loss_group": self.stage.rows_per_loss,
            **loaded,
            "loaded_share": share,
        }
        return BuiltModel(model, self, provenance)

    @property
    def architecture(self) -> str:
        return str(self.config.model_type)

    def head(self, model: nn.Module) -> list[str]:
        return [self.projected.head]

    def lora_targets(self, model: nn.Module) -> list[str]:
        return find_lora_targets(model, head=self.head(model))

    def save_setup(self, folder: Path) -> None:
        self.config.save_pretrained(folder)
        if self.config.model_type != "timm_wrapper":  # its processor is part of config.json
            self.preprocessing.processor.save_pretrained(folder)

    def save(self, folder: Path, model: nn.Module, *, adapter: bool) -> None:
        self.save_setup(folder)
        if adapter:
            save_adapter(model, folder)
        else:
            merged(model).save_pretrained(folder)

    def reload(self, folder: Path) -> nn.Module:
        source = self.source
        return load_saved(self.projected, folder, base=source.name, config=self.config, **source.arguments())

    # --------------------------------------------------------------------------------------- rows

    @property
    def features(self) -> datasets.Features:
        return datasets.Features({**FEATURES, "label": datasets.Value("string")})

    @property
    def cpu_batch_budget(self) -> int:
        return pass_rows(self.preprocessing)

    @property
    def sequence_length(self) -> int | None:
        return None

    @property
    def cache_key(self) -> str:
        return cache_key(self.preprocessing, "images and names")

    def preprocess(self, split: Split) -> Callable[[Columns], Columns]:
        name = label_namer(split)

        def encode(batch: Columns) -> Columns:
            labels = [name(label) for label in batch.get("label", [None] * len(batch["row"]))]
            encoded = encode_images(batch["image"], self.preprocessing, split.folder)
            return {**encoded, "label": labels, "row": batch["row"]}

        return encode

    def lengths(self, rows: datasets.Dataset) -> Sequence[int] | None:
        return None

    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        columns = rows[list(indices)]
        pixels = [read_pixels(columns, i) for i in range(len(indices))]
        return {**self._views(columns, pixels, EVALUATION), "pixels": self._fit(columns, pixels)}

    def collate_train(self, rows: datasets.Dataset, indices: Sequence[int], *, epoch: int) -> Batch:
        columns = rows[list(indices)]
        return self._views(columns, [read_pixels(columns, i) for i in range(len(indices))], epoch)

    def _views(self, columns: Columns, pixels: Sequence[Tensor], epoch: int) -> Batch:
        drawn = [
            self.views(image, seed=self.seed, epoch=epoch, row=row)
            for image, row in zip(pixels, columns["row"], strict=True)
        ]
        first, second = zip(*drawn, strict=True)
        return {"first": self._fit(columns, first), "second": self._fit(columns, second)}

    def _fit(self, columns: Columns, pixels: Sequence[Tensor]) -> Tensor:
        return fit_pixels(pixels, columns["fitted"], self.preprocessing)

    # --------------------------------------------------------------------------------------- step

    def _projections(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Of both views, in one pass."""
        pixels = self.preprocessing.normalise(torch.cat([batch["first"], batch["second"]]))
        first, second = model(pixel_values=pixels).logits.float().chunk(2)
        return first, second

    def num_targets(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["first"]), device=batch["first"].device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nt_xent(*self._projections(model, batch), temperature=self.stage.temperature)[0].mean()

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """How similar the views of each image are, rounded so that other orders of summation do not show."""
        views = nn.functional.normalize(torch.stack(self._projections(model, batch), dim=1), dim=-1)
        features = self.embed(model, batch).cpu().numpy()
        return [
            {"prediction": round(float(pair[0] @ pair[1]), 2), "views": pair, "features": vector}
            for pair, vector in zip(views.cpu().numpy(), features, strict=True)
        ]

    def to_output(self, prediction: Prediction, *, top_k: int) -> dict[str, Any]:
        return {"prediction": prediction["prediction"]}

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the projection receives for the image as it is, [images, width]."""
        received: list[Tensor] = []
        head = [module for module in model.modules() if isinstance(module, Projection)][-1]
        hook = head.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
        try:
            model(pixel_values=self.preprocessing.normalise(batch["pixels"]))
        finally:
            hook.remove()
        return received[0].float().flatten(1)

    # --------------------------------------------------------------------------------- evaluation

    def _judged(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """With the loss of each image in its group, and whether its views were each other's nearest."""
        if not predictions or "loss" in predictions[0]:
            return list(predictions)
        n, group = len(predictions), self._group(len(predictions))
        judged: list[Prediction] = []
        for start in range(0, n, group):
            begin = min(start, n - group)  # the last group is as large as the others
            views = torch.from_numpy(np.stack([p["views"] for p in predictions[begin : begin + group]]))
            losses, matched = nt_xent(views[:, 0], views[:, 1], temperature=self.stage.temperature)
            found = list(zip(losses.tolist(), matched.tolist(), strict=True))[start - begin :]
            judged += [
                {**p, "loss": loss, "matched": hit} for p, (loss, hit) in zip(predictions[start:], found, strict=False)
            ]
        return judged

    def _group(self, n_rows: int) -> int:
        assert self.stage.rows_per_loss is not None
        return min(self.stage.rows_per_loss, n_rows)

    def references(self, rows: datasets.Dataset) -> list[str | None]:
        return list(rows["label"])

    def row_scores(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> NDArray[np.float64]:
        return loss_rows(self._judged(predictions))

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], *, intervals: bool) -> Score:
        judged = self._judged(predictions)
        values = {"views_matched": float(np.mean([p["matched"] for p in judged]))}
        return score_objective(judged, references, values=values, what="images", intervals=intervals, seed=self.seed)

    def baselines(self, train_references: list[Any], rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        """The other view of an image by chance."""
        others = 2 * self._group(len(rows)) - 1
        guess = {"prediction": 0.0, "loss": math.log(others), "matched": 1 / others**2}
        return {"chance": [dict(guess) for _ in range(len(rows))]}

    def columns(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> Columns:
        judged = self._judged(predictions)
        return {
            "prediction": [p["prediction"] for p in judged],
            "reference": list(references),
            "loss": [p["loss"] for p in judged],
            "matched": [bool(p["matched"]) for p in judged],
        }

    def report_examples(
        self, rows: datasets.Dataset, predictions: Sequence[Prediction], references: Sequence[Any]
    ) -> list[ReportExample]:
        """The pictures whose views are told worst, each with its views beside it."""
        judged = self._judged(predictions)
        shown = []
        for i in sorted(range(len(judged)), key=lambda i: -judged[i]["loss"])[:12]:
            batch, row = self.collate_eval(rows, [i]), rows[i]["row"]
            picture = torch.cat([batch[name][0] for name in ("pixels", "first", "second")], dim=2)
            title = f"loss {judged[i]['loss']:.3f}"
            content = decoding.to_png(picture, largest_side=320)
            shown.append(ReportExample("image", title, f"row {row} · as it is, and its two views", content))
        return shown
