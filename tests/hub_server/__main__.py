"""Serve until interrupted: `python -m tests.hub_server`; models and data sets are pushed to it with the real client."""

import contextlib
import threading

from .server import HubServer

with HubServer() as server:
    print(f"HF_ENDPOINT={server.url} HF_TOKEN={server.token} HF_HUB_DISABLE_XET=1", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        threading.Event().wait()
