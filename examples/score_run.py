"""Score a run of the command `udmlss train` whose images lie in one folder per class.

    udmlss train photos --out run
    python examples/score_run.py run

The training did not see the classes. Each image is searched among all others.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from pyarrow import parquet

from udmlss import evaluate_embeddings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    run = parser.parse_args().run
    paths = parquet.read_table(run / "images.parquet", columns=["path"])["path"].to_pylist()
    _, labels = np.unique([Path(path).parent.name for path in paths], return_inverse=True)
    print(f"{len(paths):,} images of {labels.max() + 1} classes")
    for name, file in (("before training", "embeddings-before.npy"), ("after training", "embeddings.npy")):
        embeddings = torch.from_numpy(np.load(run / file)).float()
        print(f"{name:16}", evaluate_embeddings(embeddings, torch.from_numpy(labels)))


if __name__ == "__main__":
    main()
