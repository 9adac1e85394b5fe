"""The command ``lightning-practices``, also ``python -m lightning_practices``.

- ``_main``: the parser, and which file runs which command.
- ``_lightning``: ``fit``, ``validate``, ``test`` and ``predict``, by LightningCLI.
- ``_check``: the advisor.
- ``_fuse``: what could be fused in a model.
- ``_schedule``: pictures of learning rates, and schedules of unfreezing as files.
- ``_doctor``: versions, devices and caches.
- ``_places``: find classes and models by the names that users give.
"""

from lightning_practices.cli._main import main

__all__ = ["main"]
