"""Where training curves go: TensorBoard's files beneath the results, or a service by name.

Secrets stay in the environment, where each service looks for them. Only the first process speaks.
"""

import importlib.util
import os

from scripts.lib import ranks, stage
from scripts.lib.errors import InputError

# Any one of these packages will do.
PACKAGES = {
    "tensorboard": ("tensorboardX", "tensorboard"),
    "wandb": ("wandb",),
    "mlflow": ("mlflow",),
    "trackio": ("trackio",),
}


def report_to(job: stage.Job) -> list[str]:
    """transformers' names of the trackers that `runtime.trackers` asks for; none in all but the first process.

    Raises InputError for one whose package is missing.
    """
    asked: list[str] = job.runtime["trackers"]
    for name in asked:
        if not any(importlib.util.find_spec(package) for package in PACKAGES[name]):
            raise InputError(
                f"runtime.trackers names {name!r}, but {PACKAGES[name][0]} is not installed.\n"
                f"Hint: pip install {PACKAGES[name][0]}, or leave {name} out of `trackers`."
            )
    if not ranks.first():
        return []
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(job.curves)
    os.environ.setdefault("WANDB_DIR", str(job.curves.parent))
    os.environ.setdefault("WANDB_PROJECT", "ouroboros")
    return asked
