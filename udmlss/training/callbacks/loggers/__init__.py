"""Loggers: callbacks that write the measurements of every step and round to files or a tracker."""

from udmlss.training.callbacks.loggers.csv_logger import CSVLogger
from udmlss.training.callbacks.loggers.mlflow_logger import MLflowLogger
from udmlss.training.callbacks.loggers.tensorboard_logger import TensorBoardLogger
from udmlss.training.callbacks.loggers.wandb_logger import WandbLogger

__all__ = ["CSVLogger", "MLflowLogger", "TensorBoardLogger", "WandbLogger"]
