"""`python -m train classify`: trains a text classifier from scratch."""

import shlex
from collections.abc import Sequence

from train.data.classification import ClassificationData
from train.data.text_classification import LabelledTexts, load_files, load_imdb, load_sst2
from train.data.text_examples import text_examples
from train.tasks.classify.config import ClassifyConfig, TextConfig, parse
from train.tasks.classify.training import train_classifier


def main(argv: Sequence[str]) -> int:
    """Parses the flags and trains; returns the exit code."""
    config = parse(argv)
    words = [word for word in argv if word != "--overwrite"]
    command = shlex.join(["python", "-m", "train", "classify", *words])
    return train_classifier(config, load_data(config), command=command)


def load_data(config: ClassifyConfig) -> ClassificationData:
    """Reads the configured texts and turns them into word ids, with trees where the model reads trees.

    Raises:
        UserError: a file, a column or a label is not usable.
    """
    return text_examples(
        _load_texts(config.data),
        max_length=config.data.max_length,
        vocabulary_size=config.data.vocabulary,
        max_branching=config.max_branching(),
    )


def _load_texts(data: TextConfig) -> LabelledTexts:
    if data.dataset == "sst2":
        return load_sst2(data.data_path)
    if data.dataset == "imdb":
        return load_imdb(data.data_path)
    assert data.train_file is not None, "parse() asks for it"
    return load_files(
        data.train_file,
        data.validation_file,
        data.test_file,
        text_column=data.text_column or "text",
        label_column=data.label_column or "label",
        validation_share=data.validation_share or 0.1,
    )
