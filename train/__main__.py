"""`python -m train <subcommand>`: the table of subcommands and what happens to errors."""

import importlib
import sys
from collections.abc import Sequence

from train.errors import TrainingFailed, UserError

# name -> (module with `main(argv)`, one line). Modules are imported only when chosen, so that help is quick.
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "charlm": ("train.tasks.charlm.command", "train a character language model"),
    "classify": ("train.tasks.classify.command", "train a text classifier: SST-2, IMDB or texts of your own"),
    "finetune": (
        "train.tasks.finetune.command",
        "fine-tune a pretrained text encoder: irony, emotion, SST-2 or texts of your own",
    ),
    "predict": ("train.tasks.finetune.predict", "label texts with a fine-tuned encoder"),
    "lra": ("train.tasks.lra.command", "train on a task of the Long Range Arena"),
    "sample": ("train.tasks.charlm.sample", "write text with a trained model"),
    "diagnose": (
        "train.tasks.charlm.diagnose",
        "tell whether random features could replace a trained attention",
    ),
    "classify-study": ("train.studies.classify", "compare text classifiers over seeds, into one JSON"),
    "finetune-study": ("train.studies.heads", "compare heads of an encoder over seeds, into one JSON"),
    "zero-shot": (
        "train.studies.zero_shot.command",
        "a fine-tuned encoder with other attention and no further training",
    ),
    "sweep": ("train.studies.sweep.command", "tasks of the Long Range Arena with many attentions and seeds"),
    "report": ("train.studies.sweep.report", "a table and a heatmap of sweeps, beside published figures"),
    "study": ("train.studies.gates", "compare attentions and positions over seeds, into one JSON"),
}


def usage() -> str:
    """The list printed when no subcommand is given."""
    width = max(map(len, SUBCOMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in SUBCOMMANDS.items())
    return f"usage: python -m train <subcommand> [options]\n\n{rows}\n\nEach has its own --help."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv: the words after `python -m train`; None takes them from the command line.

    Returns:
        The exit code: 0, 1 (training failed), 2 (the user can put it right), 130 or 143 (stopped by a signal).

    Examples:
        >>> main([])
        usage: python -m train <subcommand> [options]
        ...
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, *rest = words
    if name not in SUBCOMMANDS:
        print(f"error: unknown subcommand {name!r}; known: {', '.join(SUBCOMMANDS)}", file=sys.stderr)
        return UserError.exit_code
    try:
        return importlib.import_module(SUBCOMMANDS[name][0]).main(rest)
    except (UserError, TrainingFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
