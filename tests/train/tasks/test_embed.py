"""Embeddings of a file of texts."""

import numpy as np
import pytest

from jaxattn.encoders.sentence.files import SentenceConfig, write_files
from jaxattn.models import SentenceEncoder
from jaxattn_train.cli.commands import main
from tests.train.tiny_encoder import save_tiny_encoder

pytest.importorskip("tokenizers")


def test_embed_writes_a_row_a_text(tmp_path, capsys):
    folder = save_tiny_encoder(tmp_path / "encoder", layers=1)
    write_files(folder, SentenceConfig(pooling=("cls",), normalize=True), (), 16)
    (tmp_path / "texts.csv").write_text("body,n\nw1 w2,1\nw3 great fine w4,2\nw5,3\n")
    words = ["embed", str(tmp_path / "texts.csv"), "--text-column", "body", "--encoder", str(folder)]
    out = tmp_path / "rows.npy"
    assert main([*words, "--out", str(out), "--dtype", "float32", "--prompt", "w6 "]) == 0
    assert "3 texts, 16 numbers each" in capsys.readouterr().err
    model = SentenceEncoder.from_pretrained(folder)
    expected = model.encode(["w1 w2", "w3 great fine w4", "w5"], prompt="w6 ")
    np.testing.assert_array_equal(np.load(out), expected)
    assert main([*words, "--out", str(tmp_path / "nowhere" / "x.npy")]) == 2
    assert "--out must lie in a folder that exists" in capsys.readouterr().err
    assert main([*words, "--out", words[1]]) == 2
    assert "--out must be another file than the one of the texts" in capsys.readouterr().err
    (folder / "modules.json").unlink()
    assert main([*words, "--out", str(out)]) == 2
    assert "must hold a modules.json" in capsys.readouterr().err
