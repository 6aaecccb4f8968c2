"""Callbacks of `fit`: averaged weights, the best weights, early stopping, checkpoints and loggers.

A callback is an object with any of these methods:

- `on_start(run)`: called before the first round, with the `Run`.
- `on_step(report)`: called after every optimizer step, with a `StepReport`.
- `on_round(report)`: called at the end of every round, with a `RoundReport`.
- `on_end(run)`: called when training ends, also by an error; the callbacks are called in reverse order. Averaged
  weights are loaded and the embedder is recomputed after that: save or score the model after `fit`.
- `state_dict()` and `load_state_dict(state)`: what a checkpoint saves of the callback.

`on_step` and `on_round` end training by returning True. A plain function is an `on_round`. Under `torchrun` a function
is called on rank 0 only, while methods are called on every rank. A callback whose attribute `needs_label_free` is True
receives label-free scores in the reports of the rounds.
"""

from udmlss.training.callbacks.best_weights import BestWeights
from udmlss.training.callbacks.checkpoint import Checkpoint
from udmlss.training.callbacks.early_stopping import EarlyStopping
from udmlss.training.callbacks.loggers import CSVLogger, MLflowLogger, TensorBoardLogger, WandbLogger
from udmlss.training.callbacks.weight_average import WeightAverage

__all__ = [
    "BestWeights",
    "CSVLogger",
    "Checkpoint",
    "EarlyStopping",
    "MLflowLogger",
    "TensorBoardLogger",
    "WandbLogger",
    "WeightAverage",
]
