"""Pretraining on speech without text: wav2vec 2.0's contrastive objective."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForPreTraining, PretrainedConfig

from tltasks.config.model import Checkpoint
from tltasks.config.stage import StageKind, StagePlan
from tltasks.config.tasks.speech import SpeechModel, SpeechObjectiveStage, UnlabelledSpeechData
from tltasks.data.batching import step_of_rows
from tltasks.data.seeding import draw_seed
from tltasks.data.splits import EncodedSplit, Split
from tltasks.errors import CheckpointError, DataError, RecipeError
from tltasks.models.adapters import find_lora_targets, merged
from tltasks.models.cross_entropy import unwrap_model
from tltasks.models.loading import check_loaded, load_pretrained, load_saved, open_config, save_adapter
from tltasks.results.result import ReportExample, Score
from tltasks.tasks.base import Batch, BuiltModel, Columns, InputKind, Prediction
from tltasks.tasks.self_supervised import EVALUATION, label_namer, loss_rows, score_objective
from tltasks.tasks.speech import audio
from tltasks.tasks.speech.recognition import FRAMES_PER_SECOND, open_feature_extractor
from tltasks.tasks.speech.wav2vec2_objective import (
    HEAD,
    ContrastiveOutput,
    clip_inputs,
    contrast,
    draw_mask,
    draw_negatives,
    initialise_contrast,
    install_quantizer,
)
from tltasks.tasks.speech.waveforms import apart, drop_no_layers, located, output_frames

FAMILIES = ("wav2vec2", "wav2vec2-conformer")
"""Model types for which transformers has the objective's models."""
FEWEST_CODES = 2.0
"""A codebook of which fewer are in use says the same of all frames."""
WORST_SHOWN = 12


@dataclass(frozen=True)
class SpeechPretraining:
    """One stage's view of wav2vec 2.0: hidden frames are told by their code from other hidden frames of the clip.

    The headline is the loss over hidden frames of clips held out, under masks and negatives that are always the same;
    the diversity loss, which is over the clips of a pass, is not part of it. Beside it stand how often a frame is told
    right, how many codes are in use, how well features tell apart labels that the data may have, and how far features
    of different clips spread. transformers has neither fairseq's penalty on the convolutions' activations nor its
    smaller learning rate for them. Source: Baevski et al., https://arxiv.org/abs/2006.11477.
    """

    tag: ClassVar[str] = "speech-pretraining"
    headline: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    label: ClassVar[str | None] = None
    input_kind: ClassVar[InputKind] = InputKind("audio", audio.SUFFIXES)
    output_features: ClassVar[datasets.Features] = datasets.Features({"prediction": datasets.Value("float32")})

    source: Checkpoint
    config: PretrainedConfig
    feature_extractor: Any
    stage: SpeechObjectiveStage
    seed: int

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: StagePlan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        assert isinstance(plan.model, SpeechModel)
        assert isinstance(plan.data, UnlabelledSpeechData)
        stage = plan.stage
        assert isinstance(stage, SpeechObjectiveStage)
        keys = {"speech_task": plan.model.speech_task, "audio_window": plan.model.audio_window, "as": plan.model.as_}
        given = [f"model.{key}" for key, value in keys.items() if value is not None]
        given += ["model.beams"] * (plan.model.beams > 1)
        if given:
            raise RecipeError(
                f"{', '.join(given)}: {source.display_name} is pretrained without text and has no such choice."
            )
        config = open_config(source.name, shown=source.display_name, **source.arguments())
        if config.model_type not in FAMILIES:
            raise CheckpointError(
                f"model {source.display_name}: wav2vec 2.0's objective is for {' and '.join(FAMILIES)}, not for "
                f"{config.model_type}."
            )
        if config.add_adapter:
            raise CheckpointError(
                f"model {source.display_name}: has layers above its encoder that shorten the output (add_adapter), so "
                "frames and codes would not match."
            )
        if not splits:  # for a checkpoint that is only to be used, as it was trained
            own = {"negatives": config.num_negatives, "temperature": config.contrastive_logits_temperature}
            stage = stage.model_copy(update=own)
        drop_no_layers(config)
        config.apply_spec_augment = True  # by which the model hides frames
        config.mask_feature_prob = 0.0  # drawn from numpy's global state, and no part of the objective
        config.num_negatives, config.contrastive_logits_temperature = stage.negatives, stage.temperature
        config.diversity_loss_weight = stage.diversity_weight
        extractor = open_feature_extractor(source.name, shown=source.display_name, **source.arguments())
        made = cls(source, config, extractor, stage, seed)
        if output_frames(config, made._longest) < stage.mask.mask_time_length:
            raise RecipeError(
                f"crop_seconds: {stage.crop_seconds:g} s are {output_frames(config, made._longest)} frames, fewer than "
                f"mask.mask_time_length {stage.mask.mask_time_length}."
            )
        return made

    @property
    def _hz(self) -> int:
        return int(self.feature_extractor.sampling_rate)

    @property
    def _longest(self) -> int:
        """Samples of the longest clip that the model is given."""
        return int(self.stage.crop_seconds * self._hz)

    def data_checks(self, encoded: dict[str, EncodedSplit]) -> dict[str, dict[str, float]]:
        return {}  # clips that cannot serve are left out and counted as they are encoded

    # -------------------------------------------------------------------------------------- model

    def starting_from(self, source: Checkpoint) -> Self:
        return dataclasses.replace(self, source=source)

    def as_pretrained(self) -> Self:
        return self

    def build(self, kind: StageKind) -> BuiltModel[Self]:
        model, loaded = load_pretrained(
            AutoModelForPreTraining,
            copy.deepcopy(self.config),
            self.source.name,
            shown=self.source.display_name,
            random=kind.weights == "random",
            **self.source.arguments(),
        )
        lost = [name for name in loaded["newly_initialised"] if name.startswith(tuple(f"{h}." for h in HEAD))]
        if kind.head == "new":
            initialise_contrast(model)
        elif lost:
            raise CheckpointError(
                f"model {self.source.display_name}: has no weights for the objective's codes "
                f"({', '.join(lost[:3])}, …); use `stage: transfer`, which puts new ones on its encoder."
            )
        share = check_loaded(model, loaded["newly_initialised"], head=list(HEAD), shown=self.source.display_name)
        install_quantizer(model)
        provenance = {
            "name": self.source.display_name,
            "revision": self.source.revision,
            "model_type": self.config.model_type,
            "objective": "wav2vec 2.0",
            "negatives": self.stage.negatives,
            **loaded,
            "loaded_share": share,
        }
        return BuiltModel(model, self, provenance)

    @property
    def architecture(self) -> str:
        return str(self.config.model_type)

    def head(self, model: nn.Module) -> list[str]:
        return list(HEAD)

    def lora_targets(self, model: nn.Module) -> list[str]:
        return find_lora_targets(model, head=self.head(model))

    def save_setup(self, folder: Path) -> None:
        self.config.save_pretrained(folder)
        self.feature_extractor.save_pretrained(folder)

    def save(self, folder: Path, model: nn.Module, *, adapter: bool) -> None:
        self.save_setup(folder)
        if adapter:
            save_adapter(model, folder)
        else:
            merged(model).save_pretrained(folder)

    def reload(self, folder: Path) -> nn.Module:
        source, config = self.source, copy.deepcopy(self.config)
        model = load_saved(AutoModelForPreTraining, folder, base=source.name, config=config, **source.arguments())
        install_quantizer(unwrap_model(model))
        return model

    # --------------------------------------------------------------------------------------- rows

    @property
    def features(self) -> datasets.Features:
        return datasets.Features(
            {
                "audio": datasets.Value("binary"),
                "samples": datasets.Value("int64"),
                "label": datasets.Value("string"),
            }
        )

    @property
    def sequence_length(self) -> int | None:
        return None

    @property
    def cache_key(self) -> str:
        shortest = (self.config.conv_kernel, self.config.conv_stride, self.stage.mask.mask_time_length)
        return hashlib.sha256(repr((self.tag, self._hz, shortest)).encode()).hexdigest()

    @property
    def cpu_batch_budget(self) -> int:
        return 16 * 1000

    def preprocess(self, split: Split) -> Callable[[Columns], Columns]:
        name = label_namer(split)

        def encode(batch: Columns) -> Columns:
            labels = [name(label) for label in batch.get("label", [None] * len(batch["row"]))]
            encoded: Columns = {"audio": [], "samples": [], "label": labels, "row": batch["row"], "error": []}
            for value in batch["audio"]:
                content, n_samples, error = None, None, None
                try:
                    samples = audio.decode_audio(located(value, split.folder), self._hz)
                    frames = output_frames(self.config, len(samples))
                    if frames < self.stage.mask.mask_time_length:
                        raise DataError(
                            f"is {len(samples) / self._hz:.2f} s long, which is {frames} frames; a hidden stretch "
                            f"alone takes {self.stage.mask.mask_time_length}"
                        )
                    content, n_samples = audio.to_int16(samples), len(samples)
                except DataError as reason:
                    error = str(reason)
                for key, item in (("audio", content), ("samples", n_samples), ("error", error)):
                    encoded[key].append(item)
            return encoded

        return encode

    def lengths(self, rows: datasets.Dataset) -> Sequence[int] | None:
        samples = np.minimum(np.asarray(rows["samples"], dtype=np.int64), self._longest)
        costs: list[int] = (-(-samples * FRAMES_PER_SECOND // self._hz)).tolist()
        return costs

    def collate_eval(self, rows: datasets.Dataset, indices: Sequence[int]) -> Batch:
        return self._batch(rows[list(indices)], EVALUATION)

    def collate_train(self, rows: datasets.Dataset, indices: Sequence[int], *, epoch: int) -> Batch:
        steps = step_of_rows(len(rows), batch_size=self.stage.batch_size, seed=self.seed, epoch=epoch)
        gumbel = self.stage.gumbel
        temperature = max(gumbel.start * gumbel.decay ** int(steps[indices[0]]), gumbel.end)
        return {**self._batch(rows[list(indices)], epoch), "gumbel": torch.tensor(temperature)}

    def _batch(self, columns: Columns, epoch: int) -> Batch:
        clips = [
            self._crop(audio.from_int16(content), epoch, row)
            for content, row in zip(columns["audio"], columns["row"], strict=True)
        ]
        inputs = self.feature_extractor(
            clips, sampling_rate=self._hz, padding=True, return_attention_mask=True, return_tensors="pt"
        )
        frames = [output_frames(self.config, len(clip)) for clip in clips]
        masks = [
            torch.from_numpy(draw_mask(n, **self.stage.mask.model_dump(), seed=self.seed, epoch=epoch, row=row))
            for n, row in zip(frames, columns["row"], strict=True)
        ]
        negatives = [
            torch.from_numpy(
                draw_negatives(int(mask.sum()), self.stage.negatives, seed=self.seed, epoch=epoch, row=row)
            )
            for mask, row in zip(masks, columns["row"], strict=True)
        ]
        # The model's frames for the padded batch are those of its longest clip.
        seeds = [draw_seed("codes", self.seed, epoch, row) >> 1 for row in columns["row"]]
        return {
            **{name: torch.as_tensor(values) for name, values in inputs.items()},
            "mask": pad_sequence(masks, batch_first=True),
            "frames": torch.tensor(frames),
            "negatives": torch.cat(negatives),
            "noise_seeds": torch.tensor(seeds),
        }

    def _crop(self, samples: audio.Samples, epoch: int, row: int) -> audio.Samples:
        spare = len(samples) - self._longest
        if spare <= 0:
            return samples
        start = 0
        if epoch != EVALUATION:
            start = int(np.random.default_rng(draw_seed("crop", self.seed, epoch, row)).integers(0, spare + 1))
        return samples[start : start + self._longest]

    # --------------------------------------------------------------------------------------- step

    @cached_property
    def _one_by_one(self) -> bool:
        return apart(self.config)

    def _told(self, model: nn.Module, batch: Batch) -> ContrastiveOutput:
        gumbel = float(batch["gumbel"]) if "gumbel" in batch else 1.0
        return contrast(model, batch, temperature=self.stage.temperature, gumbel=gumbel, one_by_one=self._one_by_one)

    def num_targets(self, batch: Batch) -> Tensor:
        return batch["mask"].sum()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        told = self._told(model, batch)
        return told.losses.mean() + self.stage.diversity_weight * told.diversity

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """The mean loss of each clip, rounded so that other orders of summation do not show, its codes and features."""
        told, features = self._told(model, batch), self.embed(model, batch).cpu().numpy()
        counts = batch["mask"].sum(1).tolist()
        predictions = []
        for losses, right, codes, vector in zip(
            *(torch.split(values.cpu(), counts) for values in (told.losses, told.right, told.codes)),
            features,
            strict=True,
        ):
            loss = float(losses.sum())
            predictions.append(
                {
                    "prediction": float(f"{loss / len(losses):.3g}"),
                    "loss": loss,
                    "targets": len(losses),
                    "right": int(right.sum()),
                    "codes": codes.to(torch.int16).numpy(),
                    "features": vector,
                }
            )
        return predictions

    def to_output(self, prediction: Prediction, *, top_k: int) -> dict[str, Any]:
        return {"prediction": prediction["prediction"]}

    def embed(self, model: nn.Module, batch: Batch) -> Tensor:
        """The encoder's mean output over each clip with nothing hidden, [clips, width]."""
        encoder, vectors = unwrap_model(model).base_model, []
        frames = batch["frames"].tolist()
        for i, clips in enumerate([slice(i, i + 1) for i in range(len(frames))] if self._one_by_one else [slice(None)]):
            states = encoder(**clip_inputs(batch, clips, one_by_one=self._one_by_one)).last_hidden_state.float()
            sizes = frames[i : i + 1] if self._one_by_one else frames
            vectors += [state[:n].mean(0) for state, n in zip(states, sizes, strict=True)]
        return torch.stack(vectors)

    # --------------------------------------------------------------------------------- evaluation

    def references(self, rows: datasets.Dataset) -> list[str | None]:
        return list(rows["label"])

    def row_scores(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> NDArray[np.float64]:
        return loss_rows(predictions)

    def score(self, predictions: Sequence[Prediction], references: Sequence[Any], *, intervals: bool) -> Score:
        values: dict[str, float] = {}
        notes: list[str] = []
        targets = sum(p["targets"] for p in predictions)
        values["masked_accuracy"] = sum(p["right"] for p in predictions) / targets
        if predictions and "codes" in predictions[0]:
            codes = np.concatenate([p["codes"] for p in predictions])
            used = [
                _perplexity(codes[:, book], self.config.num_codevectors_per_group) for book in range(codes.shape[1])
            ]
            values["codebook_perplexity"] = float(np.mean(used))
            if min(used) < FEWEST_CODES:
                notes.append(
                    f"The codes have collapsed: a codebook has {min(used):.1f} of "
                    f"{self.config.num_codevectors_per_group} in use, so its frames cannot be told apart by it."
                )
        return score_objective(
            predictions, references, values=values, notes=notes, what="clips", intervals=intervals, seed=self.seed
        )

    def baselines(self, train_references: list[Any], rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        """One of the frame and its negatives, by chance."""
        chance = math.log(1 + self.stage.negatives)
        guesses: list[Prediction] = []
        for row, samples in zip(rows["row"], rows["samples"], strict=True):
            frames = output_frames(self.config, min(samples, self._longest))
            mask = draw_mask(frames, **self.stage.mask.model_dump(), seed=self.seed, epoch=EVALUATION, row=row)
            n = int(mask.sum())
            guesses.append(
                {
                    "prediction": float(f"{chance:.3g}"),
                    "loss": n * chance,
                    "targets": n,
                    "right": n / (1 + self.stage.negatives),
                }
            )
        return {"chance": guesses}

    def columns(self, predictions: Sequence[Prediction], references: Sequence[Any]) -> Columns:
        return {
            "prediction": [p["prediction"] for p in predictions],
            "reference": list(references),
            "loss": [p["loss"] / p["targets"] for p in predictions],
            "frames": [p["targets"] for p in predictions],
            "right": [p["right"] for p in predictions],
        }

    def report_examples(
        self, rows: datasets.Dataset, predictions: Sequence[Prediction], references: Sequence[Any]
    ) -> list[ReportExample]:
        """The clips whose frames are hardest to tell."""
        means = [p["loss"] / p["targets"] for p in predictions]
        shown = []
        for i in sorted(range(len(means)), key=lambda i: -means[i])[:WORST_SHOWN]:
            columns = rows[[i]]
            samples = audio.from_int16(columns["audio"][0])[: self._longest]
            told = f"{predictions[i]['right']} of {predictions[i]['targets']} hidden frames told right"
            title = f"loss {means[i]:.3f}, row {columns['row'][0]}"
            shown.append(ReportExample("audio", title, told, audio.to_flac(samples, self._hz)))
        return shown


def _perplexity(codes: NDArray[np.int16], n_codes: int) -> float:
    """How many codes are in use, weighed by how often: 1 when it is always the same."""
    shares = np.bincount(codes, minlength=n_codes) / len(codes)
    used = shares[shares > 0]
    return float(np.exp(-(used * np.log(used)).sum()))
