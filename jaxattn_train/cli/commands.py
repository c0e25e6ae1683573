"""The table of subcommands, and the exit codes of their errors."""

import importlib
import sys
from collections.abc import Sequence

from jaxattn_train.cli.parsing import program
from jaxattn_train.errors import TrainingFailed, UserError

# name -> (module with `main(argv)`, one line). Only the chosen module is imported, so that help is quick.
COMMANDS: dict[str, tuple[str, str]] = {
    "charlm": ("jaxattn_train.tasks.charlm.command", "train a character language model"),
    "sample": ("jaxattn_train.tasks.charlm.sample", "generate text with a trained language model"),
    "diagnose": ("jaxattn_train.tasks.charlm.diagnose", "could random features replace a trained attention?"),
    "classify": (
        "jaxattn_train.tasks.classify.command",
        "train a text classifier: SST-2, IMDB or your own texts",
    ),
    "finetune": (
        "jaxattn_train.tasks.finetune.command",
        "fine-tune a pretrained text encoder: irony, emotion, SST-2 or your own texts",
    ),
    "pretrain": (
        "jaxattn_train.tasks.pretrain.command",
        "continue masked language modelling of a pretrained encoder on your own text",
    ),
    "predict": ("jaxattn_train.tasks.predict.command", "label texts with a classifier that was trained"),
    "evaluate": ("jaxattn_train.tasks.predict.evaluate", "score such a classifier on labelled texts"),
    "embed": ("jaxattn_train.tasks.embed", "vectors of texts, by a pretrained sentence encoder"),
    "lra": ("jaxattn_train.tasks.lra.command", "train on a task of the Long Range Arena"),
    "mqar": ("jaxattn_train.tasks.mqar.command", "train on multi-query associative recall"),
    "study": ("jaxattn_train.studies.gates", "compare attentions and positions over seeds"),
    "classify-study": ("jaxattn_train.studies.classify", "compare text classifiers over seeds"),
    "finetune-study": ("jaxattn_train.studies.heads", "compare heads of an encoder over seeds"),
    "mqar-study": ("jaxattn_train.studies.recall", "compare attentions on associative recall over seeds"),
    "zero-shot": (
        "jaxattn_train.studies.zero_shot.command",
        "replace the attention of a fine-tuned encoder without further training",
    ),
    "sweep": (
        "jaxattn_train.studies.sweep.command",
        "train many attentions and seeds on the Long Range Arena",
    ),
    "report": ("jaxattn_train.studies.sweep.report", "tables and plots of sweeps, beside published figures"),
}


def usage() -> str:
    """The list printed when no subcommand is given."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    return f"usage: {program()} <subcommand> [options]\n\n{rows}\n\nEach has its own --help."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one subcommand.

    Args:
        argv: the words after `jaxattn-train`; None takes them from the command line.

    Returns:
        The exit code: 0, 1 (training failed), 2 (an error the user can correct), 130 or 143 (stopped by a signal).

    Examples:
        >>> main([])
        usage: jaxattn-train <subcommand> [options]
        ...
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    name, *rest = words
    if name not in COMMANDS:
        print(f"error: unknown subcommand {name!r}; known: {', '.join(COMMANDS)}", file=sys.stderr)
        return UserError.exit_code
    try:
        return importlib.import_module(COMMANDS[name][0]).main(rest)
    except (UserError, TrainingFailed) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
