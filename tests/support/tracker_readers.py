"""Readers of what the loggers have written: the scalars as `{(kind, name): {step: value}}`, and the steps of images."""

import csv
import json
import struct
from collections import defaultdict


def read_csv(folder):
    """Read the files of a `CSVLogger`; a step that has two rows is an error."""
    found = defaultdict(dict)
    for kind, name in {"step": "steps.csv", "round": "history.csv"}.items():
        text = (folder / name).read_text()
        assert text.endswith("\n")
        for row in csv.DictReader(text.splitlines()):
            for key, value in row.items():
                if value and key not in {"step", "round"}:
                    add(found, f"{kind}/{key}", int(row["step"]), float(value))
    return found, []


def read_tensorboard(folder):
    """Read event files as TensorBoard does."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415 (slow)

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    found = defaultdict(dict)
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            add(found, tag, event.step, event.value)
    return found, [event.step for tag in events.Tags()["images"] for event in events.Images(tag)]


def read_mlflow(client, run_id):
    """Read a run of MLflow through its client."""
    found = defaultdict(dict)
    for name in client.get_run(run_id).data.metrics:
        for metric in client.get_metric_history(run_id, name):
            add(found, name, metric.step, metric.value)
    names = [artifact.path for artifact in client.list_artifacts(run_id, "images") if artifact.path.endswith(".png")]
    return found, sorted(int(name.split("+")[2]) for name in names)


def read_wandb(folder):
    """Read the history in the file of an offline run of Weights & Biases: a log of LevelDB with protobuf records."""
    from wandb.proto import wandb_internal_pb2  # noqa: PLC0415 (slow)

    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    found, images = defaultdict(dict), []
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") != "history":
            continue
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        step = row["_step"]
        for name, value in row.items():
            if name == "clusters/_type":
                images.append(step)
            elif name.startswith(("step/", "round/")):
                add(found, name, step, value)
    return found, images


def _records(content):
    """Yield the records of a LevelDB log, whose first 7 bytes are wandb's."""
    size, position, parts = 32768, 7, []
    while position + 7 <= len(content):
        if size - position % size < 7:
            position += size - position % size
            continue
        length, kind = struct.unpack("<HB", content[position + 4 : position + 7])
        parts.append(content[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in {1, 4}:  # a whole record, or the last part of one
            yield b"".join(parts)
            parts = []


def add(found, name, step, value):
    """Add a value, unless the step has one already."""
    kind, _, key = name.partition("/")
    assert step not in found[kind, key], f"two values of {name} at step {step}"
    found[kind, key][step] = value
