"""Initialise the weights of a model, and audit how signals and gradients pass through it.

- ``_initialization``: the settings of an initialisation as an object.
- ``_initialize``: give weights new values, by the scheme that suits each layer.
- ``_activations``: the gain of each activation.
- ``_weights``: the weights of layers, their fans, and the laws to draw them by.
- ``_plan``: which scheme for which layer.
- ``_trace``, ``_flow``: what follows each layer, seen in a call of the model.
- ``_structure``: the same, read from the model's modules.
- ``_run``: call a model, and leave it as it was.
- ``_report``: the report of an initialisation.
- ``_audit``, ``_plot``: statistics of each layer's outputs and gradients, and their picture.
- ``_lsuv``: scale each layer by data.
"""

from lightning_practices.init._audit import Audit, AuditedLayer, audit
from lightning_practices.init._initialization import Initialization
from lightning_practices.init._initialize import initialize
from lightning_practices.init._lsuv import lsuv_
from lightning_practices.init._report import Initialized, InitReport, Kept
from lightning_practices.init._weights import Scheme

__all__ = [
    "Audit",
    "AuditedLayer",
    "InitReport",
    "Initialization",
    "Initialized",
    "Kept",
    "Scheme",
    "audit",
    "initialize",
    "lsuv_",
]
