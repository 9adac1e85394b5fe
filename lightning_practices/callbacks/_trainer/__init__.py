"""Functions on a Trainer that several callbacks share.

Every file of ``callbacks`` may import these modules:

- ``ranks``: numbers and decisions that are the same on every rank, so that all ranks stop together.
- ``logs``: whether to log at this step, and the monitored values that a loop has just logged.
- ``modes``: a warning of a monitored value whose name contradicts the mode.
- ``horizon``: the length of the fit, in optimizer steps and in epochs.
- ``strategies``: the error for a strategy under which a callback can't work.
- ``others``: selection of the Trainer's callbacks by class, and their order.
- ``optimizers``: the index of an optimizer in ``Trainer.optimizers``, and the ``GradScaler``.
- ``sharding``: shards of ``DTensor`` parameters, and the whole tensors that checkpoints hold.
- ``kept_state``: a copy of a module's state in CPU memory.
- ``best_weights``: the best state of a fit: kept in memory, restored, saved and loaded.
"""
