"""An experiment over pictures of two domains, and a search of settings."""

from pathlib import Path

EXPERIMENT = """\
recipe:
  task: image-classification
  model: {{name: vit}}
  data:
    name: parquet
    files: {{train: dark/train.parquet}}
    splits: {{test: null}}
    extra_test: {{red: {{files: red/test.parquet}}, dark: {{files: dark/test.parquet}}}}
  precision: fp32
axes:
  source:
    red: {{data.files: {{train: red/train.parquet}}}}
  method:
    scratch: {{stages: [{{stage: pretrain, steps: 2, batch_size: 8, learning_rate: 1e-3, keep: last}}]}}
    probe: {{stages: [{{stage: probe, l2: 0.1}}]}}
  shots:
    "2": {{data.shots: 2}}
    all:
seeds: [0, 1]
contrast: {{axis: method, controls: [scratch]}}
domains: source
curve: shots
output: {output}
"""
N_TRIALS = 8


def write_experiment(folder: Path, output: Path) -> Path:
    path = folder / f"{output.name}.yaml"
    path.write_text(EXPERIMENT.format(output=output))
    return path


SEARCH = """\
recipe:
  task: image-classification
  model: {{name: vit}}
  data:
    name: parquet
    files: {{train: data/train.parquet, test: data/test.parquet}}
    splits: {{validation: 0.4}}
    corruptions: {{kinds: [contrast], severities: [1]}}
  stages:
    - {{stage: transfer, epochs: 3, batch_size: 8, learning_rate: 1e-2, keep: last}}
  precision: fp32
space:
  stages.0.learning_rate: {{low: 1e-5, high: 3e-2, log: true}}
  stages.0.batch_size: [4, 8]
  stages.0.weight_decay: {{low: 0.0, high: 0.1, step: 0.01}}
trials: 7
startup_trials: 3
warmup_evaluations: 1
output: {output}
"""


def write_search(folder: Path, output: Path) -> Path:
    path = folder / f"{output.name}.yaml"
    path.write_text(SEARCH.format(output=output))
    return path
