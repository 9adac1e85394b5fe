"""What several callbacks ask of a Trainer; any file of the callbacks may import these.

- ``ranks``: numbers and decisions that are the same on every rank, so that all ranks stop together.
- ``logs``: whether to log at this step, and the monitored value that a loop has just logged.
- ``horizon``: how long the fit is going to be, in optimizer steps and in epochs.
- ``strategies``: the refusal of strategies that hold weights or gradients in a form of their own.
- ``others``: the other callbacks of the Trainer, and the order of all of them.
- ``optimizers``: the place of an optimizer among the Trainer's, and the ``GradScaler``.
- ``sharding``: shards of ``DTensor`` parameters, and the whole tensors that checkpoints hold.
- ``kept_state``: a copy of a module's state in CPU memory.
- ``best_weights``: the best state of a fit: kept, given back, saved and loaded.
"""
