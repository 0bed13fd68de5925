"""Pretraining on speech without text: wav2vec 2.0's contrastive objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForPreTraining, PretrainedConfig, PreTrainedModel, SequenceFeatureExtractor

from tltasks.config.model import Checkpoint
from tltasks.config.stage import StagePlan
from tltasks.config.tasks.speech import SpeechModel, SpeechObjectiveStage, UnlabelledSpeechData
from tltasks.data.batching import step_of_rows
from tltasks.data.near_duplicates import Likeness
from tltasks.data.seeding import draw_seed
from tltasks.data.splits import Columns, EncodedSplit, Split, located, row_title
from tltasks.errors import CheckpointError, DataError, RecipeError
from tltasks.models.adapters import unwrap_model
from tltasks.models.loading import ModelLoader, open_config
from tltasks.results.result import ReportExample
from tltasks.tasks.base import Batch, BuiltModel, InputKind, Prediction, Processor, digest_of
from tltasks.tasks.self_supervised import EVALUATION, SelfSupervisedTask, rounded
from tltasks.tasks.speech import audio
from tltasks.tasks.speech.recognition import (
    FRAMES_PER_SECOND,
    draw_nothing,
    given_keys,
    goes_apart,
    open_feature_extractor,
    output_frames,
    read_clips,
)
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

FAMILIES = ("wav2vec2", "wav2vec2-conformer")
"""Model types for which transformers has the objective's models."""
FEWEST_CODES = 2.0
"""A codebook of which fewer are in use says the same of all frames."""
Plan = StagePlan[SpeechModel, UnlabelledSpeechData, SpeechObjectiveStage]


@dataclass(frozen=True)
class SpeechPretraining(SelfSupervisedTask[SpeechModel, UnlabelledSpeechData, SpeechObjectiveStage]):
    """One stage's view of wav2vec 2.0: hidden frames are told by their code from other hidden frames of the clip.

    The diversity loss, which is over the clips of a pass, is not part of the headline. Beside the loss stand how often
    a frame is told right and how many codes are in use. transformers has neither fairseq's penalty on the
    convolutions' activations nor its smaller learning rate for them.
    Source: Baevski et al., https://arxiv.org/abs/2006.11477.
    """

    tag: ClassVar[str] = "speech-pretraining"
    input_kind: ClassVar[InputKind] = InputKind("audio", audio.SUFFIXES, made_up=audio.made_up_audio)
    rows_name: ClassVar[str] = "clips"
    auto_class: ClassVar[ModelLoader] = AutoModelForPreTraining
    cpu_batch_budget: ClassVar[int] = 16 * 1000
    head_name: ClassVar[str] = "the objective's codes"
    new_head_hint: ClassVar[str] = "use `stage: transfer`, which puts new ones on its encoder."

    feature_extractor: SequenceFeatureExtractor

    # ------------------------------------------------------------------------------------ opening

    @classmethod
    def open(cls, plan: Plan, splits: dict[str, Split], source: Checkpoint, *, seed: int) -> Self:
        if given := given_keys(plan.model, "speech_task", "audio_window", "as_", "beams"):
            raise RecipeError(f"{given}: {source.display_name} is pretrained without text and has no such choice.")
        config = open_config(source)
        _check_family(config, source)
        if not splits:  # for a checkpoint that is only to be used, as it was trained
            own = {"negatives": config.num_negatives, "temperature": config.contrastive_logits_temperature}
            plan = replace(plan, stage=plan.stage.model_copy(update=own))
        stage = plan.stage
        draw_nothing(config)
        config.apply_spec_augment = True  # by which the model hides frames
        config.mask_feature_prob = 0.0  # drawn from numpy's global state, and no part of the objective
        config.num_negatives, config.contrastive_logits_temperature = stage.negatives, stage.temperature
        config.diversity_loss_weight = stage.diversity_weight
        task = cls(plan, source, config, seed, open_feature_extractor(source))
        if (frames := output_frames(config, task._longest)) < stage.mask.mask_time_length:
            raise RecipeError(
                f"crop_seconds: {stage.crop_seconds:g} s are {frames} frames, fewer than "
                f"mask.mask_time_length {stage.mask.mask_time_length}."
            )
        return task

    @property
    def _hz(self) -> int:
        return int(self.feature_extractor.sampling_rate)

    @property
    def _longest(self) -> int:
        """Samples of the longest clip that the model is given."""
        return int(self.stage.crop_seconds * self._hz)

    # -------------------------------------------------------------------------------------- model

    @property
    def settings(self) -> dict[str, object]:
        return {"objective": "wav2vec 2.0", "negatives": self.stage.negatives}

    def draw_head(self, model: PreTrainedModel, head: list[str], *, is_random: bool) -> None:
        initialise_contrast(model)

    def finish_build(self, built: BuiltModel[Self]) -> BuiltModel[Self]:
        install_quantizer(built.model)
        return built

    def head(self, model: nn.Module) -> list[str]:
        return list(HEAD)

    @property
    def setup(self) -> Sequence[Processor]:
        return [self.config, self.feature_extractor]

    def reload(self, folder: Path) -> nn.Module:
        model = super().reload(folder)
        install_quantizer(unwrap_model(model))
        return model

    # --------------------------------------------------------------------------------------- rows

    @property
    def row_features(self) -> dict[str, datasets.Value]:
        return {"audio": datasets.Value("binary"), "samples": datasets.Value("int64")}

    @property
    def cache_key(self) -> str:
        shortest = (self.config.conv_kernel, self.config.conv_stride, self.stage.mask.mask_time_length)
        return digest_of(self.tag, self._hz, shortest)

    @property
    def likeness(self) -> Likeness:
        return audio.likeness(self._hz)

    def encode(self, batch: Columns, split: Split) -> Columns:
        encoded: Columns = {"audio": [], "samples": [], "error": []}
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

    def lengths(self, rows: datasets.Dataset) -> Sequence[int] | None:
        samples = np.minimum(np.asarray(rows["samples"], dtype=np.int64), self._longest)
        costs: list[int] = (-(-samples * FRAMES_PER_SECOND // self._hz)).tolist()
        return costs

    def collate_train(self, rows: datasets.Dataset, indices: Sequence[int], *, epoch: int) -> Batch:
        steps = step_of_rows(len(rows), batch_size=self.stage.batch_size, seed=self.seed, epoch=epoch)
        gumbel = self.stage.gumbel
        temperature = max(gumbel.start * gumbel.decay ** int(steps[indices[0]]), gumbel.end)
        return {**super().collate_train(rows, indices, epoch=epoch), "gumbel": torch.tensor(temperature)}

    def collate(self, columns: Columns, *, epoch: int) -> Batch:
        drawn, rows = {"seed": self.seed, "epoch": epoch}, columns["row"]
        clips = [
            self._crop(audio.from_int16(content), epoch, row)
            for content, row in zip(columns["audio"], rows, strict=True)
        ]
        # The model's frames for the padded batch are those of its longest clip.
        frames = [output_frames(self.config, len(clip)) for clip in clips]
        masks = [self._draw_mask(n, epoch, row) for n, row in zip(frames, rows, strict=True)]
        negatives = [
            torch.from_numpy(draw_negatives(int(mask.sum()), self.stage.negatives, row=row, **drawn))
            for mask, row in zip(masks, rows, strict=True)
        ]
        seeds = [draw_seed("codes", self.seed, epoch, row) >> 1 for row in rows]
        return {
            **read_clips(clips, self.feature_extractor),
            "mask": pad_sequence([torch.from_numpy(mask) for mask in masks], batch_first=True),
            "frames": torch.tensor(frames),
            "negatives": torch.cat(negatives),
            "noise_seeds": torch.tensor(seeds),
        }

    def _draw_mask(self, frames: int, epoch: int, row: int) -> NDArray[np.bool_]:
        mask = self.stage.mask
        return draw_mask(
            frames,
            mask_time_prob=mask.mask_time_prob,
            mask_time_length=mask.mask_time_length,
            seed=self.seed,
            epoch=epoch,
            row=row,
        )

    def _crop(self, samples: audio.Samples, epoch: int, row: int) -> audio.Samples:
        spare = len(samples) - self._longest
        if spare <= 0:
            return samples
        start = 0
        if epoch != EVALUATION:
            start = int(np.random.default_rng(draw_seed("crop", self.seed, epoch, row)).integers(0, spare + 1))
        return samples[start : start + self._longest]

    # --------------------------------------------------------------------------------------- step

    @property
    def _one_by_one(self) -> bool:
        return goes_apart(self.config)

    def _contrast(self, model: nn.Module, batch: Batch) -> ContrastiveOutput:
        gumbel = float(batch["gumbel"]) if "gumbel" in batch else 1.0
        return contrast(model, batch, temperature=self.stage.temperature, gumbel=gumbel, one_by_one=self._one_by_one)

    def num_targets(self, batch: Batch) -> Tensor:
        return batch["mask"].sum()

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        output = self._contrast(model, batch)
        return output.losses.mean() + self.stage.diversity_weight * output.diversity

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """The loss of each clip, its codes and its features; `prediction` is its mean over hidden frames."""
        output, features = self._contrast(model, batch), self.embed(model, batch).cpu().numpy()
        counts = batch["mask"].sum(1).tolist()
        predictions = []
        for losses, right, codes, vector in zip(
            *(torch.split(values.cpu(), counts) for values in (output.losses, output.right, output.codes)),
            features,
            strict=True,
        ):
            loss = float(losses.sum())
            predictions.append(
                {
                    "prediction": rounded(loss / len(losses)),
                    "loss": loss,
                    "targets": len(losses),
                    "right": int(right.sum()),
                    "codes": codes.to(torch.int16).numpy(),
                    "features": vector,
                }
            )
        return predictions

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

    def metrics(self, predictions: Sequence[Prediction]) -> tuple[dict[str, float], list[str]]:
        right, targets = (sum(p[key] for p in predictions) for key in ("right", "targets"))
        values, notes = {"masked_accuracy": right / targets}, []
        if predictions and "codes" in predictions[0]:
            codes, most = np.concatenate([p["codes"] for p in predictions]), self.config.num_codevectors_per_group
            used = [_perplexity(codes[:, book], most) for book in range(codes.shape[1])]
            values["codebook_perplexity"] = float(np.mean(used))
            if min(used) < FEWEST_CODES:
                notes.append(
                    f"The codes have collapsed: a codebook has {min(used):.1f} of {most} in use, so its frames cannot "
                    "be told apart by it."
                )
        return values, notes

    def baselines(self, known: EncodedSplit, rows: datasets.Dataset) -> dict[str, list[Prediction]]:
        """One of the frame and its negatives, by chance."""
        others = 1 + self.stage.negatives
        chance, guesses = math.log(others), []
        for row, samples in zip(rows["row"], rows["samples"], strict=True):
            frames = output_frames(self.config, min(samples, self._longest))
            n = int(self._draw_mask(frames, EVALUATION, row).sum())
            guess = {"prediction": rounded(chance), "loss": n * chance, "targets": n, "right": n / others}
            guesses.append(guess)
        return {"chance": guesses}

    def own_columns(self, predictions: Sequence[Prediction]) -> Columns:
        return {"frames": [p["targets"] for p in predictions], "right": [p["right"] for p in predictions]}

    def report_example(self, rows: datasets.Dataset, row: int, prediction: Prediction) -> ReportExample:
        """A clip whose frames are hard to tell."""
        columns = rows[[row]]
        samples = audio.from_int16(columns["audio"][0])[: self._longest]
        title = f"loss {prediction['loss'] / prediction['targets']:.3f}, {row_title(rows, row)}"
        caption = f"{prediction['right']} of {prediction['targets']} hidden frames told right"
        return ReportExample("audio", title, caption, audio.to_flac(samples, self._hz))


def _check_family(config: PretrainedConfig, source: Checkpoint) -> None:
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


def _perplexity(codes: NDArray[np.int16], n_codes: int) -> float:
    """Number of codes in use, weighed by how often: 1 when it is always the same."""
    shares = np.bincount(codes, minlength=n_codes) / len(codes)
    used = shares[shares > 0]
    return float(np.exp(-(used * np.log(used)).sum()))
