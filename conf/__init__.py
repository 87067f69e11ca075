"""The Hydra configs (``pkg://cab.conf``)."""
