"""The advisor: what is wrong with a training, with evidence and the line to change.

- ``_advise``: look at a module and its data before a fit.
- ``_rule``, ``rules``: the rules, as data, and what they find.
- ``_looks``, ``_run``, ``rules_of_training``: a fit up to now, and the rules that look at it.
- ``_report``, ``_html``: the findings as a table, JSON, HTML and an exit code.
- ``_observe``, ``_open_step``, ``_observation``: run a step, and what the rules can look at.
- ``_trace``: the calls of functions on tensors within a step.
- ``_overfit``: train a copy on one batch, to see whether it can memorise it.
- ``_isolation``: copies, so that no effect of a look stays.
"""

from lightning_practices.advisor._advise import advise
from lightning_practices.advisor._looks import (
    ActivationLook,
    BatchLook,
    Look,
    LossLook,
    Norms,
    WeightLook,
)
from lightning_practices.advisor._overfit import Overfit, overfit_batch
from lightning_practices.advisor._report import Report
from lightning_practices.advisor._rule import Evidence, Finding, Rule, Severity, rule
from lightning_practices.advisor._run import Check, Kept, NotFinite, Run, Trend
from lightning_practices.advisor.rules import all_rules
from lightning_practices.advisor.rules_of_training import training_rules

__all__ = [
    "ActivationLook",
    "BatchLook",
    "Check",
    "Evidence",
    "Finding",
    "Kept",
    "Look",
    "LossLook",
    "Norms",
    "NotFinite",
    "Overfit",
    "Report",
    "Rule",
    "Run",
    "Severity",
    "Trend",
    "WeightLook",
    "advise",
    "all_rules",
    "overfit_batch",
    "rule",
    "training_rules",
]
