#!/usr/bin/env bash
# One would guess: `import peft` reads files of this machine alone, and code comes from the Hub only where it is asked for.
# peft 0.21.2, bitsandbytes 0.50.2 and kernels 0.17.2 on a CPU with avx512_bf16: peft imports bitsandbytes wherever it is
# installed, and this asks kernels for a native library of the Hub while it is imported, once to know whether it may trust
# kernels-community, which with the Hub's answer it does; it then fetches and loads the library. The Hub here is a stand-in that
# knows nothing, so it ends there.
# Seen: "asked by `import peft`: ['/api/organizations/kernels-community/overview']".
# So what runs in a process changes with what the Hub has at that moment, and each import waits for it.
set -euo pipefail
grep -q avx512_bf16 /proc/cpuinfo || { echo "needs a CPU with avx512_bf16"; exit 2; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'peft==0.21.2' 'bitsandbytes==0.50.2' 'kernels==0.17.2' 'torch==2.14.1' \
  'transformers==5.24.0' 'numpy' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
env -u HF_HUB_OFFLINE HF_HOME="$folder/home" "$folder/env/bin/python" - 2>/dev/null <<'PY' | tee "$folder/seen"
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

asked = []


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        asked.append(self.path)
        self.send_error(404)

    do_HEAD = do_POST = do_GET


server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
import peft  # noqa: E402, F401

print("asked by `import peft`:", [path for path in asked if "kernels" in path])
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: importing peft asks the Hub for nothing, or for something else"; exit 1; }
asked by `import peft`: ['/api/organizations/kernels-community/overview']
SEEN
