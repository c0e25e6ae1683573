"""Options that classification tasks share: the classifier's backbone, and labelled texts in files."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from jaxattn_train.cli.options import BackboneOptions, Options, flag
from jaxattn_train.data.text_classification import LabelledTexts, load_files
from jaxattn_train.errors import UserError

LossKind = Literal["softmax", "binary", "multilabel"]


@dataclasses.dataclass(frozen=True)
class ClassifierOptions(BackboneOptions):
    """The model."""

    pooling: Literal["mean", "max", "cls", "attention"] = "mean"
    """Pooling of the final hidden states: mean, maximum, the first one, or a mean with learned weights."""


def imply_files(argv: Sequence[str]) -> list[str]:
    """The words of a command line, with --dataset files where --train-file is given alone.

    Examples:
        >>> imply_files(["--train-file", "a.csv"])
        ['--train-file', 'a.csv', '--dataset', 'files']
    """
    given = {word.partition("=")[0].replace("_", "-") for word in argv}
    return [*argv, *(["--dataset", "files"] if "--train-file" in given and "--dataset" not in given else [])]


BRIEF = ("preset", "train_file", "test_file", "text_column", "label_column", "lr", "seeds", "out")
"""Options of every task on texts that --help shows."""


@dataclasses.dataclass(frozen=True)
class TextOptions(Options):
    """Labelled texts: a named data set, or files."""

    dataset: str = "files"
    """A named data set, or files."""
    data_path: str | None = None
    """Folder or file of the named data set, instead of JAXATTN_DATA, the cache or a download."""
    train_file: str | None = None
    """Your own texts, in place of a named data set: .tsv, .csv or .jsonl with a text and a label in each row, also
    .gz or .xz."""
    validation_file: str | None = None
    """The same, to choose the best checkpoint by; by default a share of the training texts."""
    test_file: str | None = None
    """The same, for the final numbers; without it they are of the validation texts."""
    text_column: str | None = None
    """Name of the column of texts in these files; by default text."""
    label_column: str | None = None
    """Name of the column of labels; by default label."""
    validation_share: float | None = None
    """Share of the training texts held out where there is no --validation-file; by default 0.1."""
    test_share: float | None = None
    """Share of the training texts held out for the final numbers, in place of --test-file; by default none."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: rare classes count as much as frequent ones."""

    def _check(self) -> None:
        own = (
            "train_file",
            "validation_file",
            "test_file",
            "text_column",
            "label_column",
            "validation_share",
            "test_share",
        )
        if self.dataset != "files":
            for name in own:
                if getattr(self, name) is not None:
                    raise UserError(
                        f"{flag(name)} is for --dataset files; got it with --dataset {self.dataset}."
                    )
            return
        if self.train_file is None:
            raise UserError("--dataset files needs --train-file.")
        if self.data_path is not None:
            raise UserError("--data-path is for the named data sets; got it with --dataset files.")
        for name in ("validation", "test"):
            share = getattr(self, f"{name}_share")
            if share is not None and getattr(self, f"{name}_file") is not None:
                raise UserError(f"--{name}-share is for runs without --{name}-file; got both.")
            if share is not None and not 0 < share < 1:
                raise UserError(f"--{name}-share must be between 0 and 1; got {share}.")

    def load(
        self,
        named: Mapping[str, Callable[[str | None], LabelledTexts]],
        label_separator: str | None = None,
        label_columns: Sequence[str] = (),
    ) -> LabelledTexts:
        """The configured texts.

        Args:
            named: data set -> function of --data-path.
            label_separator: between several labels of a text; None for one.
            label_columns: columns of 0 and 1, one for each label.

        Raises:
            UserError: a file or a column is not usable.
        """
        if self.dataset != "files":
            return named[self.dataset](self.data_path)
        assert self.train_file is not None, "checked"
        return load_files(
            self.train_file,
            self.validation_file,
            self.test_file,
            text_column=self.text_column or "text",
            label_column=self.label_column or "label",
            label_columns=label_columns,
            validation_share=self.validation_share or 0.1,
            test_share=self.test_share,
            label_separator=label_separator,
        )
