"""`jaxattn-train lra`: trains a classifier on a task of the Long Range Arena."""

from collections.abc import Sequence

from jaxattn.models import PairClassifier, SequenceClassifier
from jaxattn_train.cli.parsing import resume_command
from jaxattn_train.data.batches import Batch
from jaxattn_train.engine.functional import Functional
from jaxattn_train.tasks.lra.config import LRARunConfig, parse
from jaxattn_train.tasks.lra.data import LRAData, as_classification
from jaxattn_train.tasks.lra.registry import LRA_TASKS
from jaxattn_train.tasks.shared.model import sequence_classifier
from jaxattn_train.tasks.shared.training import Recipe, train_classifier


def main(argv: Sequence[str]) -> int:
    """Parses the flags and trains; returns the exit code."""
    config = parse(argv)
    return train(config, load_data(config), command=resume_command("lra", argv))


def train(config: LRARunConfig, data: LRAData, *, command: str = "the same command") -> int:
    """Trains the configured classifier; see `train_classifier`."""
    recipe = Recipe(lra_classifier, stratify=config.optimizer.stratify)
    return train_classifier(config, data, recipe, command=command)


def load_data(config: LRARunConfig) -> LRAData:
    """Reads or generates the configured data.

    Raises:
        UserError: a file is missing or damaged, or there is less than asked for.
    """
    task = LRA_TASKS[config.task]
    return as_classification(task, task.load(config.data), config.data.max_length)


def lra_classifier(config: LRARunConfig, data: LRAData, example: Batch) -> Functional:
    """The configured classifier, of sequences or of pairs; see `sequence_classifier`."""
    kind = PairClassifier if data.two_tower else SequenceClassifier
    m = config.model
    fields = {"mlp_ratio": m.mlp_ratio}
    return sequence_classifier(config, data, example, kind=kind, fields=fields, head_size=m.head_features)
