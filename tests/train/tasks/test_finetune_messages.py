"""What fine-tuning says of flags, data and encoders that it cannot use."""

import shlex

import pytest


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--head cls --filters 8", "--filters is for --head inceptive; got it with --head cls"),
        ("--no-convolution --kernels 2 3", "--kernels is for heads with convolutions"),
        ("--attention-layers 1", "--attention-layers is for --attention"),
        ("--steps 10 --epochs 2", "--steps and --epochs say the same thing"),
        ("--layerwise-decay 1.5", "--layerwise-decay must be above 0 and at most 1"),
        ("--freeze-encoder --layerwise-decay 0.9", "--layerwise-decay is for encoders that are trained"),
        ("--label-separator ;", "--label-separator is for --loss multilabel"),
        ("--patience 0", "--patience must be at least 1"),
        ("--attention tree", "--attention must say the sizes of a tree"),
        ("--head-attention nonsense", "'nonsense' is not known"),
        ("--dataset irony --train-file a.csv", "--train-file is for --dataset files"),
        ("--dataset files", "--dataset files needs --train-file"),
        ("--preset other", "--preset must be one of irony, emotion, emotion-pairs, sst2"),
        ("--encoder /nowhere/at/all", "--encoder /nowhere/at/all: name_or_path must be a folder"),
    ],
)
def test_flags_that_make_no_sense_are_named(flags, message, cli):
    code, _, err = cli("finetune", *shlex.split(flags))
    assert code == 2
    assert message in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--kernels 2 --filters 5", "num_heads must divide the width of the head"),
        (
            "--attention lags:2 --attention-layers 7",
            "layers must be numbers of the model's 2 attention layers",
        ),
        ("--max-length 65", "--max-length must be at most the encoder's limit of 64 tokens; got 65"),
        ("--text-column tweet", "--text-column must be a column of"),
        ("--loss binary", "must have exactly 2 labels for --loss binary; they have 'bad', 'fair', 'good'"),
        ("--warmup 500", "--warmup must be less than --steps = 24"),
    ],
)
def test_what_does_not_fit_the_data_or_the_encoder_is_named(flags, message, folder, tmp_path, cli):
    words = ["--encoder", folder / "tiny", "--dataset", "files", "--train-file", folder / "train.csv"]
    words += ["--batch-size", 32, "--epochs", 6, "--warmup", 1, "--max-length", 16]
    code, _, err = cli("finetune", *words, *shlex.split(flags), "--out", tmp_path / "run")
    assert code == 2
    assert message in err
    assert not (tmp_path / "run").exists(), "complaints come before anything is written"


def test_unusable_encoders_are_named(folder, tmp_path, cli):
    words = ["finetune", "--dataset", "files", "--train-file", folder / "train.csv", "--max-length", 16]
    words += ["--encoder"]
    for change, message in (
        (lambda to: (to / "model.safetensors").write_bytes(b"\0" * 100), "cannot be read"),
        (
            lambda to: (to / "model.safetensors").rename(to / "pytorch_model.bin"),
            "which can run code when read",
        ),
        (lambda to: (to / "config.json").unlink(), "must hold a config.json"),
        (lambda to: (to / "tokenizer.json").unlink(), "tokenize needs the tokenizer.json"),
    ):
        to = tmp_path / message.replace(" ", "-")
        to.mkdir()
        for file in (folder / "tiny").iterdir():
            (to / file.name).write_bytes(file.read_bytes())
        change(to)
        code, _, err = cli(*words, to)
        assert code == 2
        assert message in err
