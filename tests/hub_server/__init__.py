"""A small stand-in for the Hub on loopback, for the real client to talk to.

    with HubServer() as server:
        server.add_repo("ada/tiny-vit", {"config.json": b"{}"})
        HfApi(endpoint=server.url, token=server.token).model_info("ada/tiny-vit")

A subprocess gets `os.environ | hub_environment(server)`. Faults are asked for with `fail`, `cut`, `delay` and `before`.
"""

from .server import HubServer, Request, hub_environment
from .storage import Account, Commit, Job

__all__ = ["Account", "Commit", "HubServer", "Job", "Request", "hub_environment"]
