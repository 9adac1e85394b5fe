"""Learning curves, drawn while a fit runs.

- ``learning_curves``: the callback, which decides when to note values and when to draw.
- ``listener``: notes the values that are logged, and the learning rates.
- ``series``: the values of a name by optimizer step, in bounded memory.
- ``panels``: which curves share a panel, by their names.
- ``draw``: the picture.
- ``file``: the picture as a file.
"""

from lightning_practices.callbacks._curves.learning_curves import LearningCurves

__all__ = ["LearningCurves"]
