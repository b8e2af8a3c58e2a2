"""What `flwr run` loads; the work is in edgeladder.fleet.flower, installed on every node."""

from edgeladder.fleet.flower import client_app, server_app

__all__ = ["client_app", "server_app"]
