#!/usr/bin/env bash
# One would guess: the files of one model in one release hold the same weights, in whatever format they are, so that its safetensors
# may be read where ONNX Runtime is not at hand.
# silero-vad 6.2.3: `silero_vad_16k.safetensors` has the same layers as `silero_vad_16k_sequence.onnx`, and other weights in all of them but
# the Fourier transform: it is another training of the detector.
# Seen: "stft: 0.0", "first layer: 4.0", "output layer: 1.2" (largest differences).
# So probabilities differ by up to 0.5 in a frame, though both tell speech from noise; thresholds that were tuned with one are not the other's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check --no-deps 'silero-vad==6.2.3' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'onnx==1.23.2' 'safetensors==0.8.0' 'numpy==2.4.6' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
"$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import importlib.util
from pathlib import Path

import numpy as np
import onnx
from safetensors.numpy import load_file

data = Path(importlib.util.find_spec("silero_vad").submodule_search_locations[0]) / "data"
ours = load_file(data / "silero_vad_16k.safetensors")
graph = onnx.load(data / "silero_vad_16k_sequence.onnx").graph
theirs = {it.name: onnx.numpy_helper.to_array(it) for it in graph.initializer}
pairs = {
    "stft": ("stft_conv.weight", "stft.forward_basis_buffer"),
    "first layer": ("conv1.weight", "encoder.0.weight"),
    "output layer": ("final_conv.weight", "output.weight"),
}
for name, (own, other) in pairs.items():
    print(f"{name}: {np.abs(ours[own] - theirs[other]).max():.1f}")
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: the files hold other weights now"; exit 1; }
stft: 0.0
first layer: 4.0
output layer: 1.2
SEEN
