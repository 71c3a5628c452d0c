"""Where training curves go: TensorBoard's files beneath the results, or a service by name.

Where the environment names no place and no project, they are a folder beneath {results}/logs and `ouroboros`. Secrets
stay in the environment, where each service looks for them. Only the first process speaks.
"""

import importlib.util
import os
from typing import Any

from scripts.lib.stage import contract, ranks
from scripts.lib.stage.errors import InputError

# Any one of these packages will do.
PACKAGES = {
    "tensorboard": ("tensorboardX", "tensorboard"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}
PROJECT = "ouroboros"  # trackio's comes by an argument (scripts/lib/models/training.py)


def report_to(job: contract.Job[Any]) -> list[str]:
    """transformers' names of the trackers that `runtime.trackers` asks for; none in all but the first process.

    Raises InputError for one whose package is missing.
    """
    asked = list[str](job.runtime.trackers)
    for name in asked:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise InputError(
                f"runtime.trackers names {name!r}, but {PACKAGES[name][0]} is not installed.\n"
                f"Hint: pip install {PACKAGES[name][0]}, or leave {name} out of `trackers`."
            )
    if not ranks.first():
        return []
    for name in asked:
        folder = (job.logs / name).absolute()
        places = {
            "tensorboard": {},
            "wandb": {"WANDB_DIR": str(folder), "WANDB_PROJECT": PROJECT},
            "mlflow": {
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
                "MLFLOW_EXPERIMENT_NAME": PROJECT,
            },
            "trackio": {"TRACKIO_DIR": str(folder)},
        }[name]
        for variable, value in places.items():
            os.environ.setdefault(variable, value)
        folder.mkdir(parents=True, exist_ok=True)  # wandb writes elsewhere, mlflow fails, where it is not there
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(job.curves)
    return asked
