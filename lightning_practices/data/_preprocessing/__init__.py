"""Layers that shift, scale and whiten data by statistics of the training split.

- ``preprocessing.py``: the base class: fit, apply, undo, save.
- ``scaling.py``, ``whiten.py``, ``compose.py``: the layers.
- ``names.py``: layers by name, and from the config in a checkpoint.
- ``entries.py``: the layers of several entries of a batch.
- ``moments.py``: statistics of data that arrives in pieces.
- ``layout.py``: which numbers share a statistic.
- ``split.py``: the samples of a split, whatever a loader draws of them.
- ``reading.py``: the tensors to fit, from any data; several ranks.
"""
