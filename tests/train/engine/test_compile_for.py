"""--compile-for: what a training step would need on devices that are not here."""

import dataclasses

import jax
import pytest

from jaxattn_train.compiler.targets import TARGETS, Chip
from jaxattn_train.tasks.finetune import command


@dataclasses.dataclass(frozen=True)
class Here:
    """The CPU devices of the tests, as a target."""

    chip: Chip
    platform: str = "cpu"

    @property
    def devices(self):
        return jax.devices()

    def versions(self):
        return {"jax": jax.__version__}


@pytest.mark.parametrize("memory", [2**30, 2**16])
@pytest.mark.few(1)
def test_a_step_is_described_and_nothing_trained(memory, cli, tiny, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "jaxattn_train.engine.compile_for.named_target", lambda name: Here(Chip(memory, 1e12, 1e9))
    )
    out = tmp_path / "run"
    words = (
        *tiny,
        "--text-file",
        text_file,
        "--mesh",
        "fsdp=2",
        "--batch-size",
        32,
        "--seeds",
        2,
        "--out",
        out,
    )
    code, text, err = cli("charlm", *words, "--compile-for", "here")
    assert not err and not out.exists()
    assert "here: 8 devices, mesh {'data': 4, 'fsdp': 2, 'tensor': 1, 'sequence': 1}" in text
    assert "TFLOPs" in text and "all-reduce" in text and "all-gather" in text and "not measured" in text
    assert code == (memory < 2**20)
    assert ("fits: parameters" in text) == (memory > 2**20)
    assert ("--mesh fsdp=8" in text and "--accumulate 2" in text) == (memory < 2**20)


def test_what_cannot_be_compiled_for_is_refused(cli, tiny, text_file, monkeypatch):
    def refusal(name):
        code, _, err = cli("charlm", *tiny, "--text-file", text_file, "--compile-for", name)
        assert code == 2
        return err

    assert "must be one of v5e" in refusal("v9")
    assert "h100:8" in refusal("h100:8")
    missing = dataclasses.replace(TARGETS["v5e"], packages=("no-such-compiler",))
    monkeypatch.setitem(TARGETS, "v5e", missing)
    assert "pip install no-such-compiler" in refusal("v5e:4x4")


@pytest.mark.parametrize("more, dtype", [((), "auto"), (("--compile-for", "h100"), "bfloat16")])
def test_an_encoder_is_loaded_in_the_dtype_of_the_target(more, dtype, monkeypatch):
    loaded = []
    monkeypatch.setattr(command, "start_process", lambda run: None)
    monkeypatch.setattr(command, "load_encoder", lambda model: loaded.append(model.dtype))
    monkeypatch.setattr(command, "finetune", lambda config, encoder, command: 0)
    assert command.main(["--encoder", "none", *more]) == 0
    assert loaded == [dtype]
