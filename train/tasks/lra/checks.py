"""Checks of the data options of lra."""

from typing import Any

from train.cli.options import check_at_least
from train.errors import UserError

GENERATED, BYTES = ("listops", "pathfinder"), ("text", "retrieval")


def check_data(config: Any) -> None:
    """Raises unless the flags of the data belong to the task and make sense."""
    data, task = config.data, config.task
    made = task in GENERATED and not (task == "pathfinder" and data.data_path is not None)
    drawn = "pathfinder where it is generated, and must be None with --data-path"
    allowed = {
        "--data-path": (data.data_path is None or task != "listops", "the tasks that are read from files"),
        "--min-length": (data.min_length is None or task == "listops", "listops"),
        "--max-depth": (data.max_depth is None or task == "listops", "listops"),
        "--no-closing-brackets": (data.closing_brackets or task == "listops", "listops"),
        "--max-length": (
            data.max_length is None or task in ("listops", *BYTES),
            "listops, text and retrieval",
        ),
        "--contour-length": (data.contour_length is None or (made and task == "pathfinder"), drawn),
        "--distractors": (data.distractors is None or (made and task == "pathfinder"), drawn),
        "--data-seed": (data.data_seed is None or made, "listops and pathfinder, where they are generated"),
        "--workers": (data.workers is None or made, "listops and pathfinder, where they are generated"),
        "--data-cache": (data.data_cache is None or task in GENERATED, "listops and pathfinder"),
    }
    for flag, (fine, whose) in allowed.items():
        if not fine:
            raise UserError(f"{flag} is for {whose}; got it with --task {task}.")
    check_at_least(
        {
            "--max-length": (data.max_length, 1),
            "--min-length": (data.min_length, 0),
            "--data-seed": (data.data_seed, 0),
            "--workers": (data.workers, 1),
        }
    )
    if data.sizes is not None and min(data.sizes) < 1:
        raise UserError(f"--sizes must be at least 1 each; got {' '.join(map(str, data.sizes))}.")
    if data.contour_length is not None and not 2 <= data.contour_length <= 14:
        raise UserError(f"--contour-length must be 2 to 14; got {data.contour_length}.")
    if data.distractors is not None and not 0 <= data.distractors <= 5:
        raise UserError(f"--distractors must be 0 to 5; got {data.distractors}.")
    if data.max_depth is not None and not 2 <= data.max_depth <= 20:
        raise UserError(f"--max-depth must be 2 to 20; got {data.max_depth}.")
    if task == "listops":
        config.data_config()  # complains of lengths between which there is nothing
