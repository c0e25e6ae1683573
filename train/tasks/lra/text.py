"""Text of the Long Range Arena: is a review on IMDB positive? Bytes, cut to 4,000.

The published pipeline trains on all 25,000 reviews of the training part and takes the test part for validation
too; here 2,500 reviews are kept back for validation (`text_classification.load_imdb`), so that the test part is
read only at the end. Ids are as published: a byte's value + 1, and 0 for padding.
"""

from train.data.text_classification import load_imdb
from train.tasks.lra.split import SplitBuilder, Splits

MAX_LENGTH = 4000
VOCABULARY_SIZE = 257
PARTS = ("train", "validation", "test")


def load_text(data_path: str | None = None, *, max_length: int = MAX_LENGTH) -> Splits:
    """Reads IMDB as bytes: from --data-path, JAXATTN_DATA, the cache or a download, see `load_imdb`.

    Args:
        data_path: what --data-path says.
        max_length: the task's; what is longer loses its end.

    Returns:
        The three parts; the facts say of each how many reviews were cut and how many bytes that was.

    Raises:
        UserError: nothing is found and nothing can be downloaded, or what is found is not IMDB.
    """
    imdb = load_imdb(data_path)
    parts = []
    for texts in (imdb.train, imdb.validation, imdb.test):
        assert texts is not None
        builder = SplitBuilder(max_length=max_length)
        for text, label in zip(texts.texts, texts.labels, strict=True):
            builder.add(int(label), text.encode())
        parts.append(builder.build())
    train, validation, test = parts
    facts = {
        "source": "IMDB",
        "sha256": {name: part.sha256() for name, part in zip(PARTS, parts, strict=True)},
        "cut_texts_and_bytes": {name: list(part.cut) for name, part in zip(PARTS, parts, strict=True)},
    }
    return Splits(train, validation, test, facts)
