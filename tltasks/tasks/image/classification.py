"""Image classification with any checkpoint that AutoModelForImageClassification loads, timm's included."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from tltasks import metrics
from tltasks.config.model import Checkpoint
from tltasks.config.stage import StageKind, StagePlan
from tltasks.config.tasks.image import ImageData, ImageModel, ImageStage
from tltasks.data.corruptions import corrupt_image, generator
from tltasks.data.splits import EncodedSplit, Split
from tltasks.errors import CheckpointError, DataError
from tltasks.models.adapters import find_head, find_lora_targets, merged, relabel
from tltasks.models.frozen_transformer import FrozenTransformerConfig, image_processor, wrap_for_images
from tltasks.models.loading import check_loaded, initialise_head, load_pretrained, load_saved, read_config, save_adapter
from tltasks.results.result import ReportExample, Score
from tltasks.tasks.base import Batch, BuiltModel, Columns, InputKind, OnnxInput, Prediction
from tltasks.tasks.image import augmentation, decoding
from tltasks.tasks.image.encoding import FEATURES, cache_key, encode_images, fit_pixels, pass_rows, read_pixels
from tltasks.tasks.image.preprocessing import Preprocessing, load_processor, set_image_size
from tltasks.tasks.image.zero_shot import (
    PROMPTS,
    PROMPTS_KEY,
    PromptClassifier,
    is_contrastive,
    refuse_prompts,
    saved_prompts,
)

NO_LABEL = -100
"""Of rows that are only predicted; torch's cross-entropy passes over it."""

ONNX_USAGE = """import numpy as np
import onnxruntime
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor

names = AutoConfig.from_pretrained(".").id2label
session = onnxruntime.InferenceSession("model.onnx")
image = Image.new("RGB", (224, 224), "orange")  # yours: Image.open("photo.jpg").convert("RGB")
pixels = AutoImageProcessor.from_pretrained(".")(image, return_tensors="TENSORS")["pixel_values"]
logits = session.run(None, {"pixel_values": np.asarray(pixels, np.float32)})[0]
print(names[int(logits[0].argmax())])
"""
"""For the README of an exported model."""


@dataclass(frozen=True)
class ImageClassification:
    """One stage's view of an image classifier: its labels, its processor, its augmentation."""

    tag: ClassVar[str] = "image-classification"
    headline: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True
    label: ClassVar[str | None] = "label"
    input_kind: ClassVar[InputKind] = InputKind("image", decoding.SUFFIXES)
    output_features: ClassVar[datasets.Features] = datasets.Features(
        {
            "prediction": datasets.Value("string"),
            "probability": datasets.Value("float32"),
            "top": datasets.List(
                {"label": datasets.Value("string"), "probability": datasets.Value("float32")},
            ),
        }
    )

    source: Checkpoint
    config: PretrainedConfig
    preprocessing: Preprocessing
    class_names: list[str]
    """In the order of the model's outputs."""
    model_keys: ImageModel
    data_keys: ImageData
    stage: ImageStage
    seed: int
    texts: PromptClassifier | None = None
    """For a kept head of a model of images and texts, which is what the texts say of the classes."""

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: StagePlan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        assert isinstance(plan.model, ImageModel)
        assert isinstance(plan.data, ImageData)
        assert isinstance(plan.stage, ImageStage)
        given = plan.data.class_names
        found = _all_class_counts(splits, given)
        config = read_config(
            AutoModelForImageClassification,
            source.name,
            shown=source.display_name,
            changes=plan.model.config if plan.stage.start == "checkpoint" else {},
            **source.arguments(),
        )
        if plan.model.prompts is not None:
            refuse_prompts(config, shown=source.display_name)
        if plan.model.as_ is not None:
            config = wrap_for_images(config, plan.model, plan.stage, plan.kind, shown=source.display_name)
        contrastive = plan.kind.head == "kept" and is_contrastive(config)
        if contrastive:
            class_names = _told_classes(splits, found, given, config, source)
            config.update({PROMPTS_KEY: plan.model.prompts or saved_prompts(config) or PROMPTS})
        elif plan.kind.head == "kept":
            class_names = list(config.id2label.values())
            _check_kept_head(class_names, found, splits, source)
        else:
            class_names = _train_classes(splits["train"], found, given)
            _check_same_classes(class_names, found, splits)
            _name_architecture(config)
        relabel(config, class_names)
        if plan.model.image_size is not None:
            set_image_size(config, plan.model.image_size)
        if isinstance(config, FrozenTransformerConfig):
            processor: Any = image_processor(config)
        else:
            processor = load_processor(source.name, config, image_size=plan.model.image_size, **source.arguments())
        preprocessing = Preprocessing(processor, name=source.display_name)
        texts = None
        if contrastive:
            texts = PromptClassifier.open(
                source.name, config, class_names, shown=source.display_name, **source.arguments()
            )
        return cls(source, config, preprocessing, class_names, plan.model, plan.data, plan.stage, seed, texts)

    def data_checks(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        return {}  # `open` refuses what is wrong with labels

    # -------------------------------------------------------------------------------------- model

    def starting_from(self, source: Checkpoint) -> Self:
        return dataclasses.replace(self, source=source)

    def as_pretrained(self) -> Self:
        return self

    def build(self, kind: StageKind) -> BuiltModel[Self]:
        model, loaded = load_pretrained(
            self._auto_class,
            self.config,
            self.source.name,
            shown=self.source.display_name,
            random=kind.weights == "random",
            **self.source.arguments(),
        )
        head = self.head(model)
        if kind.head == "new":
            initialise_head(model, head)
        elif lost := [name for name in loaded["newly_initialised"] if any(name.startswith(f"{h}.") for h in head)]:
            raise CheckpointError(
                f"model {self.source.display_name}: has no weights for its head ({', '.join(lost)}); "
                "use `stage: transfer`, which puts a new head on it."
            )
        outer = [*head, *getattr(model, "input_layer", ())]
        share = check_loaded(model, loaded["newly_initialised"], head=outer, shown=self.source.display_name)
        about = {
            "name": self.source.display_name,
            "revision": self.source.revision,
            "model_type": self.config.model_type,
        }
        provenance = {**about, **loaded, "loaded_share": share}
        if self.texts is not None:
            model = self.texts.classifier(model, self.class_names)
            provenance["prompts"] = self.texts.prompts
        return BuiltModel(model, self, provenance)

    @property
    def _auto_class(self) -> Any:
        return AutoModelForImageClassification if self.texts is None else AutoModelForZeroShotImageClassification

    @property
    def architecture(self) -> str:
        return str(self.config.model_type)

    def head(self, model: nn.Module) -> list[str]:
        assert isinstance(model, PreTrainedModel)
        return [] if self.texts is not None else find_head(model)

    def lora_targets(self, model: nn.Module) -> list[str]:
        found = find_lora_targets(model, head=self.head(model))
        return [name for name in found if not (self.texts is not None and name.startswith("text_"))]

    def save_setup(self, folder: Path) -> None:
        self.config.save_pretrained(folder)  # the labels, which an adapter alone does not carry
        if self.config.model_type != "timm_wrapper":  # its processor is part of config.json
            self.preprocessing.processor.save_pretrained(folder)
        if self.texts is not None:
            self.texts.save(folder)

    def save(self, folder: Path, model: nn.Module, *, adapter: bool) -> None:
        self.save_setup(folder)
        if adapter:
            save_adapter(model, folder)
        else:
            merged(model).save_pretrained(folder)

    def reload(self, folder: Path) -> nn.Module:
        source = self.source
        model: nn.Module = load_saved(
            self._auto_class, folder, base=source.name, config=self.config, **source.arguments()
        )
        if self.texts is not None:
            assert isinstance(model, PreTrainedModel)
            model = self.texts.classifier(model, self.class_names)
        return model

    # --------------------------------------------------------------------------------------- rows

    @property
    def features(self) -> datasets.Features:
        return datasets.Features({**FEATURES, "label": datasets.Value("int32")})

    @property
    def cpu_batch_budget(self) -> int:
        return pass_rows(self.preprocessing)

    @property
    def sequence_length(self) -> int | None:
        """The patches of an image, for plain vision transformers."""
        patch = getattr(self.config, "patch_size", None)
        if not isinstance(patch, int) or hasattr(self.config, "window_size") or hasattr(self.config, "backbone_config"):
            return None
        return (self.preprocessing.size // patch) ** 2

    @property
    def cache_key(self) -> str:
        return cache_key(self.preprocessing, self.class_names, self.data_keys.class_names)

    def preprocess(self, split: Split) -> Callable[[Columns], Columns]:
        labelled = "label" in split.rows.column_names
        names = _label_names(split, self.data_keys.class_names) if labelled else str
        index = {name: i for i, name in enumerate(self.class_names)}

        def encode(batch: Columns) -> Columns:
            encoded = encode_images(batch["image"], self.preprocessing, split.folder)
            labels = [index[names(label)] for label in batch["label"]] if labelled else [NO_LABEL] * len(batch["row"])
            return {**encoded, "label": labels, "row": batch["row"]}

        return encode

    def corrupt(self, columns: Columns, kind: str, level: float, *, seed: int) -> Columns:
        changed = [
            corrupt_image(
                read_pixels(columns, i).numpy(), kind, int(level), generator(kind, level, seed=seed, row=row)
            ).tobytes()
            for i, row in enumerate(columns["row"])
        ]
        return {**columns, "pixels": changed}

    def lengths(self, rows: datasets.Dataset) -> Sequence[int] | None:
        return None

    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        columns = rows[list(indices)]
        pixels = fit_pixels(
            [read_pixels(columns, i) for i in range(len(indices))], columns["fitted"], self.preprocessing
        )
        return {"pixels": pixels, "labels": torch.tensor(columns["label"])}

    def collate_train(self, rows: datasets.Dataset, indices: Sequence[int], *, epoch: int) -> Batch:
        keys, drawn = self.stage.augment, {"seed": self.seed, "epoch": epoch}
        augment = augmentation.ImageAugmentation(keys)
        mixes = [augmentation.draw_mix(keys, rows=len(rows), row=int(row), **drawn) for row in indices]
        needed = list(dict.fromkeys([*map(int, indices), *(mix.partner for mix in mixes if mix)]))
        columns = rows[needed]
        place = {row: i for i, row in enumerate(needed)}
        drawn_pixels = {row: augment(read_pixels(columns, i), row=row, **drawn) for row, i in place.items()}
        pixels, partners, weights = [], [], []
        for row, mix in zip(map(int, indices), mixes, strict=True):
            image, weight = drawn_pixels[row], 1.0
            if mix is not None:
                image, weight = augmentation.apply_mix(image, drawn_pixels[mix.partner], mix)
            pixels.append(image)
            weights.append(weight)
            partners.append(columns["label"][place[mix.partner if mix else row]])
        labels = [columns["label"][place[int(row)]] for row in indices]
        fitted = [columns["fitted"][place[int(row)]] for row in indices]
        batch = {"pixels": fit_pixels(pixels, fitted, self.preprocessing), "labels": torch.tensor(labels)}
        if any(mix is not None for mix in mixes):
            batch |= {"partner_labels": torch.tensor(partners), "own_share": torch.tensor(weights)}
        return batch

    # --------------------------------------------------------------------------------------- step

    def num_targets(self, batch: Batch) -> Tensor:
        return torch.tensor(len(batch["labels"]), device=batch["labels"].device)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(pixel_values=self.preprocessing.normalise(batch["pixels"])).logits.float()
        smoothing = self.stage.label_smoothing
        if self.texts is not None:
            return self.texts.loss(logits, _soft_targets(batch, logits.shape[1], smoothing=smoothing))
        if "own_share" not in batch:
            return functional.cross_entropy(logits, batch["labels"], label_smoothing=smoothing)
        own, partner = (
            functional.cross_entropy(logits, batch[key], label_smoothing=smoothing, reduction="none")
            for key in ("labels", "partner_labels")
        )
        return (own * batch["own_share"] + partner * (1 - batch["own_share"])).mean()

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        logits = model(pixel_values=self.preprocessing.normalise(batch["pixels"])).logits
        probabilities = logits.float().softmax(-1) if self.texts is None else self.texts.probabilities(logits.float())
        return _predictions(probabilities.cpu().numpy())

    def to_output(self, prediction: Prediction, *, top_k: int) -> dict[str, Any]:
        probabilities = prediction["probabilities"]
        best = np.argsort(-probabilities, kind="stable")[:top_k].tolist()
        # str() is the shortest text of a 32-bit number; as one of 64 bits it would have digits that mean nothing.
        top = [{"label": self.class_names[i], "probability": float(str(probabilities[i]))} for i in best]
        return {"prediction": top[0]["label"], "probability": top[0]["probability"], "top": top}

    def onnx_input(self) -> OnnxInput:
        size = self.preprocessing.size

        def made_up(n: int) -> list[Tensor]:
            drawn = np.random.default_rng(0).integers(0, 256, (n, 1, 3, size, size), dtype=np.uint8)
            return [self.preprocessing.normalise(torch.from_numpy(pixels)) for pixels in drawn]

        def read(value: Any) -> Tensor:
            encoded = encode_images([value], self.preprocessing, None)
            if encoded["error"][0]:
                raise DataError(encoded["error"][0])
            pixels = fit_pixels([read_pixels(encoded, 0)], encoded["fitted"], self.preprocessing)
            return self.preprocessing.normalise(pixels)

        # timm's processor has no other tensors (transformers 5.24, image_processing_timm_wrapper.py)
        tensors = "pt" if self.config.model_type == "timm_wrapper" else "np"
        usage = ONNX_USAGE.replace("TENSORS", tensors)
        return OnnxInput("pixel_values", ["batch", 3, size, size], (0,), made_up, read, usage)

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """What the head's first layer receives, averaged over positions where it has any."""
        assert isinstance(model, PreTrainedModel)
        received: list[Tensor] = []
        head = model.get_submodule(self.head(model)[0])
        hook = head.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0]))
        try:
            model(pixel_values=self.preprocessing.normalise(batch["pixels"]))
        finally:
            hook.remove()
        features = received[0].float()
        return features.mean((2, 3)) if features.ndim == 4 else features.flatten(1)

    # --------------------------------------------------------------------------------- evaluation

    def references(self, rows: datasets.Dataset) -> list[int]:
        return [int(label) for label in rows["label"]]

    def row_scores(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> NDArray[np.float64]:
        correct = [float(p["prediction"] == r) for p, r in zip(predictions, references, strict=True)]
        return np.stack([np.array(correct), np.ones(len(correct))], axis=1)

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], *, intervals: bool) -> Score:
        values, details = metrics.classification(
            np.stack([p["probabilities"] for p in predictions]), np.array(references), self.class_names
        )
        rows = self.row_scores(predictions, references)
        low, high = metrics.bootstrap_interval(rows, seed=self.seed) if intervals else (float("nan"), float("nan"))
        return Score(values, self.headline, (low, high), details)

    def baselines(self, train_references: list[Any], rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        counts = np.bincount(train_references, minlength=len(self.class_names)).astype(np.float32)
        return {"majority_class": _predictions(np.tile(counts / counts.sum(), (len(rows), 1)))}

    def knn_predict(
        self, known: NDArray[np.float32], references: list[Any], vectors: NDArray[np.float32]
    ) -> list[Prediction]:
        n_classes = len(self.class_names)
        return _predictions(metrics.nearest_neighbours(known, np.array(references), vectors, n_classes=n_classes))

    def columns(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> Columns:
        return {
            "prediction": [self.class_names[p["prediction"]] for p in predictions],
            "reference": [self.class_names[r] for r in references],
            "probabilities": [p["probabilities"] for p in predictions],
        }

    def report_examples(
        self, rows: datasets.Dataset, predictions: Sequence[Prediction], references: Sequence[Any]
    ) -> list[ReportExample]:
        """The most confident mistakes, as pictures."""
        wrong = [i for i, (p, r) in enumerate(zip(predictions, references, strict=True)) if p["prediction"] != r]
        wrong.sort(key=lambda i: -float(predictions[i]["probabilities"].max()))
        shown = []
        for i in wrong[:24]:
            columns, p = rows[[i]], predictions[i]
            confidence = float(p["probabilities"].max())
            shown.append(
                ReportExample(
                    "image",
                    f"{self.class_names[p['prediction']]} ({confidence:.0%})",
                    f"is {self.class_names[references[i]]} · row {columns['row'][0]}",
                    decoding.to_png(read_pixels(columns, 0)),
                )
            )
        return shown


# ------------------------------------------------------------------------------------------- labels


def _label_names(split: Split, class_names: list[str] | None) -> Callable[[Any], str]:
    """How this split writes its labels: as numbers of named classes, as numbers, or as names."""
    feature = split.rows.features["label"]
    if isinstance(feature, datasets.ClassLabel):
        return lambda value: str(feature.names[value])
    if class_names is not None:
        return lambda value: class_names[value] if isinstance(value, int) else str(value)
    return lambda value: str(value)


def _all_class_counts(splits: dict[str, Split], class_names: list[str] | None) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    mistakes = []
    for name, split in splits.items():
        try:
            found[name] = _class_counts(split, class_names)
        except DataError as error:
            mistakes.append(str(error))
    if mistakes:
        raise DataError("\n".join(mistakes))
    return found


def _class_counts(split: Split, class_names: list[str] | None) -> Counter[str]:
    """Rows of each class; DataError for labels that are missing or are no classes."""
    feature = split.rows.features["label"]
    kind = (
        "string" if isinstance(feature, datasets.ClassLabel) else str(getattr(feature, "dtype", type(feature).__name__))
    )
    if not kind.startswith(("int", "uint", "string", "large_string", "bool")):
        raise DataError(f"{split.where}: column `label` holds {kind}; a class is a name or a whole number.")
    values = Counter(split.rows["label"])
    unlabelled = sum(n for value, n in values.items() if value is None or value == "")
    if isinstance(feature, datasets.ClassLabel) or class_names is not None:
        n_classes = feature.num_classes if isinstance(feature, datasets.ClassLabel) else len(class_names or [])
        unlabelled += sum(n for value, n in values.items() if isinstance(value, int) and not 0 <= value < n_classes)
    if unlabelled:
        raise DataError(
            f"{split.where}: {unlabelled} of {len(split.rows)} rows have no label or one outside the class list. "
            "Hub test splits are often unlabelled: use another split, or hold out a share (`test: 0.1`)."
        )
    name = _label_names(split, class_names)
    return Counter({name(value): n for value, n in values.items()})


def _train_classes(train: Split, found: dict[str, Counter[str]], given: list[str] | None) -> list[str]:
    feature = train.rows.features["label"]
    if isinstance(feature, datasets.ClassLabel):
        names = [str(name) for name in feature.names]
    elif given is not None:
        names = given
    else:
        numeric = all(name.lstrip("-").isdigit() for name in found["train"])
        names = sorted(found["train"], key=int if numeric else None)
    if len(names) < 2:
        raise DataError(f"{train.where}: holds the single class {names}; a classifier needs two.")
    if len(set(names)) < len(names):
        twice = [name for name, n in Counter(names).items() if n > 1]
        raise DataError(f"{train.where}: several classes are called {', '.join(twice)}; give data.class_names.")
    return names


def _told_classes(
    splits: dict[str, Split],
    found: dict[str, Counter[str]],
    given: list[str] | None,
    config: PretrainedConfig,
    source: Checkpoint,
) -> list[str]:
    """The classes that a model of images and texts is to tell apart: the data's, or those that it was saved with."""
    if not splits:
        if saved_prompts(config) is None:
            raise CheckpointError(
                f"model {source.display_name}: is to be told its classes, and nothing names them here. Use the results "
                "folder of a run with `stage: zero_shot`, whose model has the classes of its data."
            )
        return list(config.id2label.values())
    first = next((name for name in ("train", "test", "validation") if name in splits), next(iter(splits)))
    names = _train_classes(splits[first], {"train": sum(found.values(), Counter())}, given)
    unknown = {name: sorted(set(counts) - set(names)) for name, counts in found.items()}
    lines = [f"{splits[name].where}: has {_some(classes)}" for name, classes in unknown.items() if classes]
    if lines:
        raise DataError("\n".join(lines) + f"\n{splits[first].where} has {len(names)} classes: {_some(names)}.")
    return names


def _name_architecture(config: PretrainedConfig) -> None:
    """A new head on a tower for images makes another class of it, which whoever opens the configuration goes by."""
    classes = AutoModelForImageClassification._model_mapping
    if is_contrastive(config) and type(config) in classes:
        config.architectures = [classes[type(config)].__name__]
        # SigLIP's pooling, which its classifier passes by (transformers 5.24, modeling_siglip.py)
        config.vision_config.vision_use_head = False


def _soft_targets(batch: Batch, n_classes: int, *, smoothing: float) -> Tensor:
    """What each row should be, [rows, classes]."""
    targets = functional.one_hot(batch["labels"], n_classes).float()
    if "own_share" in batch:
        own = batch["own_share"].unsqueeze(1)
        targets = own * targets + (1 - own) * functional.one_hot(batch["partner_labels"], n_classes)
    return (1 - smoothing) * targets + smoothing / n_classes


def _check_same_classes(class_names: list[str], found: dict[str, Counter[str]], splits: dict[str, Split]) -> None:
    lines = []
    for name, counts in found.items():
        declared = getattr(splits[name].rows.features["label"], "names", None)
        theirs = set(declared or counts)
        unknown = sorted(theirs - set(class_names))
        unseen = sorted(c for c in counts if c in class_names and not found["train"][c])
        missing = sorted(set(class_names) - theirs) if declared else []
        if unknown:
            lines.append(f"{splits[name].where}: has classes that train has not: {_some(unknown)}.")
        if unseen:
            lines.append(f"{splits[name].where}: has classes without one training example: {_some(unseen)}.")
        if missing and unknown:
            lines.append(f"{splits[name].where}: lacks classes that train has: {_some(missing)}.")
    if lines:
        lines.append(
            f"train has: {_some(sorted(class_names))}. A slice of sorted rows loses classes; a share does not."
        )
        raise DataError("\n".join(lines))


def _check_kept_head(
    class_names: list[str], found: dict[str, Counter[str]], splits: dict[str, Split], source: Checkpoint
) -> None:
    unknown = {name: sorted(set(counts) - set(class_names)) for name, counts in found.items()}
    lines = [f"{splits[name].where}: has {_some(classes)}" for name, classes in unknown.items() if classes]
    if lines:
        raise DataError(
            "\n".join(lines)
            + f"\n{source.display_name} knows {len(class_names)} classes: {_some(class_names)}."
            + "\nA kept head needs the checkpoint's own labels; `stage: transfer` puts a new head on it."
        )


def _some(names: Sequence[str], limit: int = 12) -> str:
    shown = ", ".join(names[:limit])
    return f"{shown}, … ({len(names)} in all)" if len(names) > limit else shown


# -------------------------------------------------------------------------------------- predictions


def _predictions(probabilities: NDArray[np.float32]) -> list[Prediction]:
    return [{"prediction": int(p.argmax()), "probabilities": p} for p in probabilities]
