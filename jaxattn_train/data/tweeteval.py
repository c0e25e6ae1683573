"""TweetEval: irony and emotion in tweets, from their public home."""

from pathlib import Path

from jaxattn_train.data.download import RemoteFile
from jaxattn_train.data.files import obtain
from jaxattn_train.data.tables import Texts
from jaxattn_train.data.text_classification import LabelledTexts
from jaxattn_train.errors import UserError

_HOME = "https://raw.githubusercontent.com/cardiffnlp/tweeteval/main/datasets"
_SHA256 = {
    "emotion": {
        "mapping": "656dea85d149716af96206ca19bec0d94e9dc6de3f5079f5c7c2a241ec76cadb",
        "train_text": "2c62f67aeb3eac1aea0e5a9c3d0f4bc337992581f3f858061786a1fb4d79d95e",
        "train_labels": "987e767d8679e18abdf7de37a6d2bcd0a40a296ddd704e8d515cf0e3033c8d9c",
        "val_text": "e2e30c86b8cbb97944d6543aedc06eace3bb275cb2f381aba787b838b4f23ca5",
        "val_labels": "313730630160b7e0a6b4235b800c76683f4aeeb72d094eb69646630cd5cfe338",
        "test_text": "7e1070f5d3e3fcece5bc73680bff9981e90d8f7b2f1009bfe7a01d059d1c6091",
        "test_labels": "245072348c711961785be6d395997f97cf7fcda3effeae7805664171dc75f913",
    },
    "irony": {
        "mapping": "70e09046e181179b9870a2f59a3263bbb28c787831779e4ce4a18373d054296b",
        "train_text": "a888125a44f7dfaa25b026318748d0e62cc9a300d20f66eafd62011a19eaea23",
        "train_labels": "fc69e6106c0f1f433a91536e08f83c71a391d7b219f7684d42f243a8089af77d",
        "val_text": "8806cf3793e300a485cfae34892fc3a0a2f9a183deb06c750c6531515c83051e",
        "val_labels": "ccf429f63b4e8d0e7f425ca09445f7c31f7cea8a1b7c283b015b117c4002fd07",
        "test_text": "53103da934a7308eee82f05f2a9781a8ea3e88604fdc1e02d3101108505c64be",
        "test_labels": "08e2095e1725e74907a380614c220204e356bb46e3e8c93deb74e83e5b15ab38",
    },
}
TWEETEVAL: dict[str, dict[str, RemoteFile]] = {
    task: {
        name: RemoteFile(
            f"tweeteval/{task}/{name}.txt",
            f"{_HOME}/{task}/{name}.txt",
            sha256,
            f"{name}.txt of TweetEval {task}",
            f"Without a network: put the files of that repository's datasets/{task} into a folder "
            f"tweeteval/{task} of a data folder, and set JAXATTN_DATA to the data folder or give --data-path; or use "
            "--train-file with files of your own.",
        )
        for name, sha256 in files.items()
    }
    for task, files in _SHA256.items()
}


def load_tweeteval(task: str, data_path: str | None = None) -> LabelledTexts:
    """One task of TweetEval, in its published parts.

    Args:
        task: "irony" or "emotion".
        data_path: a folder with the seven files of the task, or with a folder tweeteval of tasks; None looks into
            JAXATTN_DATA and the cache, and downloads.

    Raises:
        UserError: a file is missing, not the expected one, or cannot be downloaded.
    """
    paths = {name: obtain(file, data_path) for name, file in TWEETEVAL[task].items()}
    names = dict(line.split("\t") for line in _lines(paths["mapping"]))
    train, validation, test = (
        _part(paths[f"{part}_text"], paths[f"{part}_labels"]) for part in ("train", "val", "test")
    )
    return LabelledTexts(f"TweetEval {task}", train, validation, test, names)


def load_emotion_pairs(data_path: str | None = None) -> LabelledTexts:
    """A constructed set of texts with one or two labels: pairs of tweets of TweetEval emotion.

    Tweets 2i and 2i + 1 of a part are joined by a space, and have both labels; a last one without a partner is left
    out.

    Args:
        data_path: see `load_tweeteval`.

    Raises:
        UserError: see `load_tweeteval`.
    """
    single = load_tweeteval("emotion", data_path)
    parts = {name: _pairs(part) for name, part in single.parts().items()}
    return LabelledTexts("pairs of TweetEval emotion", **parts, class_names=single.class_names)


def _pairs(part: Texts) -> Texts:
    """Neighbours as one text, with the labels of both."""
    texts, labels, ids = (zip(x[::2], x[1::2], strict=False) for x in (part.texts, part.labels, part.ids))
    return Texts(
        [" ".join(pair) for pair in texts],
        [",".join(sorted(set(pair))) for pair in labels],
        ["+".join(pair) for pair in ids],
    )


def _part(texts: Path, labels: Path) -> Texts:
    words, numbers = _lines(texts), _lines(labels)
    if len(words) != len(numbers):
        raise UserError(f"{texts} has {len(words)} lines and {labels} {len(numbers)}; they must agree.")
    return Texts(words, numbers, [str(i) for i in range(len(words))])


def _lines(path: Path) -> list[str]:
    # Not splitlines(): some tweets hold characters that it counts as line ends.
    return [line.strip() for line in path.read_text(encoding="utf-8").rstrip("\n").split("\n")]
