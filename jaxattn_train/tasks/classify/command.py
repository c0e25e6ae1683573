"""`jaxattn-train classify`: trains a text classifier from scratch."""

from collections.abc import Sequence

from jaxattn_train.cli.parsing import resume_command
from jaxattn_train.data.classification import ClassificationData
from jaxattn_train.data.text_classification import load_imdb, load_sst2
from jaxattn_train.data.text_examples import text_examples
from jaxattn_train.tasks.classify.config import ClassifyConfig, parse
from jaxattn_train.tasks.shared.losses import balanced_weights
from jaxattn_train.tasks.shared.training import Recipe, train_classifier


def main(argv: Sequence[str]) -> int:
    """Parses the flags and trains; returns the exit code."""
    config = parse(argv)
    data = load_data(config)
    balanced = config.data.class_weights == "balanced"
    weights = balanced_weights("softmax", data.train.labels, len(data.classes)) if balanced else None
    recipe = Recipe(class_weights=weights)
    return train_classifier(config, data, recipe, command=resume_command("classify", argv))


def load_data(config: ClassifyConfig) -> ClassificationData:
    """The configured texts as word ids, with trees where the model reads trees.

    Raises:
        UserError: a file, a column or a label is not usable.
    """
    return text_examples(
        config.data.load({"sst2": load_sst2, "imdb": load_imdb}),
        max_length=config.data.max_length,
        vocabulary_size=config.data.vocabulary,
        max_branching=config.max_branching(),
    )
