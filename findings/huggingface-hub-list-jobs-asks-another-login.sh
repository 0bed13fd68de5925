#!/usr/bin/env bash
# One would guess: every method of `HfApi(endpoint=…, token=…)` speaks to that endpoint as that login, as the class's documentation
# says, and jobs are listed for the user whose token was given: inspect_job, cancel_job and run_job do so.
# huggingface_hub 2.4.0: list_jobs without a namespace asks the module's own `whoami` (hf_api.py, list_jobs), so the default endpoint, as
# the login of this machine, and then lists the jobs of that user: with the token that was given, at the endpoint that was given.
# Seen: list_jobs asks "default" who "hf_of_the_machine" is, and then "given" for the jobs of "somebody-else"; inspect_job asks "given"
# alone.
# So two accounts or Hubs in one process are mixed up, without an error: name the namespace.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check 'huggingface_hub==2.4.0' 2>"$folder/pip.log" || { cat "$folder/pip.log"; exit 2; }
HF_HOME="$folder/home" NO_PROXY=127.0.0.1 "$folder/env/bin/python" - 2>"$folder/errors" <<'PY' | tee "$folder/seen" || { cat "$folder/errors"; exit 2; }
import json
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

USERS = {"Bearer hf_of_the_machine": "somebody-else", "Bearer hf_given": "me"}
JOB = {"id": "1", "owner": {"id": "1", "name": "me", "type": "user"}, "status": {"stage": "RUNNING"}}


def hub(name):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            asked = self.headers["Authorization"]
            if asked:  # what the client asks beside is asked without a login
                print(f"  {name}: {self.path} as {asked.removeprefix('Bearer ')}", flush=True)
            answer = {"name": USERS.get(asked)} if "whoami" in self.path else JOB if self.path.endswith("/1") else [] if asked else {}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


os.environ |= {"HF_ENDPOINT": hub("default"), "HF_TOKEN": "hf_of_the_machine"}
from huggingface_hub import HfApi

api = HfApi(endpoint=hub("given"), token="hf_given")
print("inspect_job", flush=True)
api.inspect_job(job_id="1")
print("list_jobs", flush=True)
list(api.list_jobs())
PY
diff - "$folder/seen" <<'SEEN' || { echo "changed: list_jobs asks otherwise now"; exit 1; }
inspect_job
  given: /api/whoami-v2 as hf_given
  given: /api/jobs/me/1 as hf_given
list_jobs
  default: /api/whoami-v2 as hf_of_the_machine
  given: /api/jobs/somebody-else as hf_given
SEEN
