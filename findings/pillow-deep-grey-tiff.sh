#!/usr/bin/env bash
# One would guess: Pillow gives a grey TIFF of 12 or 16 bits the brightness that it has in 8 bits, as it does for colour.
# Pillow 12.3.0: the levels of 12 bits stay in the lower part of 16 (white is 4095 of 65535), a 16-bit file whose white is zero
# (PhotometricInterpretation 0) is not inverted though an 8-bit one is, and `convert("L")` clips 16 bits at 255 rather than
# scaling them, so that nearly all of a picture is white.
# Seen: "12 bits, white: 4095", "8 bits, white is zero: 255", "16 bits, white is zero: 0", "16 bits, quarter grey as L: 255".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'pillow==12.3.0' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
cat >"$folder/read.py" <<'PY'
import io
import struct

from PIL import Image


def tiff(values: bytes, bits: int, photometric: int) -> Image.Image:
    """Two grey pixels in a row."""
    tags = {256: 2, 257: 1, 258: bits, 259: 1, 262: photometric, 273: 0, 277: 1, 278: 1, 279: len(values)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return Image.open(io.BytesIO(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + values))


print("12 bits, white:", tiff(bytes([0xFF, 0xF0, 0x00]), 12, 1).getpixel((0, 0)))
print("8 bits, white is zero:", tiff(bytes([0, 255]), 8, 0).getpixel((0, 0)))
print("16 bits, white is zero:", tiff(struct.pack("<HH", 0, 65535), 16, 0).getpixel((0, 0)))
print("16 bits, quarter grey as L:", tiff(struct.pack("<HH", 16384, 0), 16, 1).convert("L").getpixel((0, 0)))
PY
"$folder/env/bin/python" "$folder/read.py" | tee "$folder/seen"
diff - "$folder/seen" <<'SEEN' || { echo "changed: Pillow reads deep grey otherwise now"; exit 1; }
12 bits, white: 4095
8 bits, white is zero: 255
16 bits, white is zero: 0
16 bits, quarter grey as L: 255
SEEN
