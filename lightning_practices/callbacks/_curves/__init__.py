"""Learning curves, drawn while a fit runs.

- ``learning_curves``: the callback, which decides when to record values and when to draw.
- ``listener``: records the logged values, and the learning rates.
- ``series``: the values of a name by optimizer step, in bounded memory.
- ``panels``: groups curves into panels, by their names.
- ``draw``: draws the picture.
- ``file``: writes the picture to a file.
"""

from lightning_practices.callbacks._curves.draw import Mark
from lightning_practices.callbacks._curves.learning_curves import LearningCurves
from lightning_practices.callbacks._curves.panels import read as read_name
from lightning_practices.callbacks._curves.series import History

__all__ = ["History", "LearningCurves", "Mark", "read_name"]
