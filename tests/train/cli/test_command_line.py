"""The command line: help of every flag, presets, checks."""

import ast
import dataclasses
import inspect
import re
import sys
import typing

import pytest
import tyro

from jaxattn_train.cli.commands import COMMANDS
from jaxattn_train.errors import UserError
from jaxattn_train.tasks.charlm.config import PRESETS, parse


def test_no_subcommand_prints_the_list(cli):
    code, out, _ = cli()
    assert code == 0
    assert all(f"  {name} " in out for name in COMMANDS)


def test_an_unknown_subcommand_is_one_line(cli):
    code, _, err = cli("chralm")
    assert code == 2
    assert err.startswith("error: unknown subcommand 'chralm'")
    assert len(err.splitlines()) == 1


def test_ctrl_c_ends_the_process_at_once(monkeypatch, capsys):
    """Without Python's shutdown, during which a compilation in another thread crashes."""
    from jaxattn_train import __main__

    def interrupted():
        raise KeyboardInterrupt

    codes = []
    monkeypatch.setattr(__main__, "main", interrupted)
    monkeypatch.setattr("os._exit", lambda code: [codes.append(code), sys.exit(code)])
    with pytest.raises(SystemExit):
        __main__.run()
    assert codes == [130]
    assert capsys.readouterr().err == "interrupted\n"


def _docstring(kind, name):
    """The text below a field, in the nearest class that defines it."""
    for base in kind.__mro__:
        body = ast.parse(inspect.getsource(base)).body[0].body
        for statement, below in zip(body, [*body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign) and statement.target.id == name:
                return ast.literal_eval(below.value) if isinstance(below, ast.Expr) else ""
    raise AssertionError(f"no field {name}")


def _options(kind):
    """(flag or name of an argument, its docstring) of every field, those of nested groups included."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from _options(hints[field.name])
        elif tyro.conf.Positional in getattr(hints[field.name], "__metadata__", ()):
            yield field.name.upper(), _docstring(kind, field.name)
        else:
            yield f"--{field.name.replace('_', '-')}", _docstring(kind, field.name)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_flag(cli, command, monkeypatch):
    seen, through = [], tyro.cli
    monkeypatch.setattr(tyro, "cli", lambda kind, **rest: [seen.append(kind), through(kind, **rest)][1])
    monkeypatch.setenv("COLUMNS", "90")  # one column of boxes
    code, out, _ = cli(command, "--help-all")
    assert code == 0
    flat = re.sub(r"[│\s]+", " ", out)
    options = dict(_options(seen[0]))
    assert options
    for flag, text in options.items():
        words = " ".join(text.split())
        assert len(words) > 5, f"{flag} is not explained"
        assert flag in flat
        assert words[:40] in flat, flag


@pytest.mark.parametrize("command", ["charlm", "finetune", "classify", "pretrain", "lra", "mqar"])
def test_help_shows_the_options_used_most(cli, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    code, out, _ = cli(command, "--help")
    assert code == 0
    assert 8 <= len(re.findall(r"^.{1,3}--\w", out, re.MULTILINE)) <= 12
    assert f"{command} --help-all lists all of them" in out
    assert "type:" not in cli(command, "--help-all")[1]


def test_own_files_name_the_run_folder():
    from jaxattn_train.tasks.finetune.config import parse as finetune

    assert finetune(["--train-file", "my/mails.csv.gz"]).out() == "runs/finetune-mails"
    assert parse(["--text-file", "novel.txt"]).out() == "runs/charlm-novel"


@pytest.mark.parametrize("words", [("--out", "gs://bucket/run"), ("--out=s3a://bucket/run",)])
def test_addresses_of_buckets_are_no_folders(cli, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    code, _, error = cli("charlm", *words)
    assert code == 2 and "://bucket/run is not a local path; download it, or mount it" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--prompt", "s3://bucket"], ["--prompt=s3://bucket"]])
def test_a_prompt_may_be_any_text(words):
    assert parse(words).evaluation.prompt == "s3://bucket"


def test_a_tree_without_sizes_is_answered_with_sizes_that_fit(cli):
    for words, suggested in ((["charlm"], "16x8"), (["finetune", "--max-length", 64], "8x8")):
        code, _, err = cli(*words, "--attention", "tree")
        assert code == 2
        assert f"tokens tree:{suggested}; got 'tree'" in err


def test_paper_preset_is_the_published_setting():
    config = PRESETS["paper"]
    m, o = config.model, config.optimizer
    assert (m.num_layers, m.num_heads, m.features, m.context_length, m.dropout) == (6, 8, 256, 256, 0.1)
    assert (o.steps, o.batch_size, o.lr, o.warmup_steps, o.clip) == (5000, 64, 3e-4, 300, 1.0)
    assert (o.beta1, o.beta2, o.weight_decay) == (0.9, 0.95, 0.1)
    assert config.data.corpus == "tinyshakespeare"


def test_flags_override_the_preset_wherever_they_stand():
    config = parse(["--steps", "400", "--preset=study", "--attention", "softmax+gate=none", "--seeds", "3"])
    assert config.optimizer.steps == 400
    assert config.data.corpus == "tinyshakespeare"
    assert config.model.attention == "softmax+gate=none"
    assert config.seeds() == (0, 1, 2)
    assert config.out() == "runs/charlm-study"


def test_warmup_is_a_share_of_the_steps_or_a_number_of_them():
    assert parse([]).optimizer.warmup_steps == 60
    assert parse(["--steps", "20"]).optimizer.warmup_steps == 1
    assert parse(["--steps", "20", "--warmup", "5"]).optimizer.warmup_steps == 5
    assert parse(["--warmup", "60"]).identity() == parse([]).identity()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--preset tiny", "--preset must be one of demo, study, paper"),
        ("--steps 0", "--steps must be at least 1"),
        ("--num-heads 3", "--num-heads must divide --features = 128; got 3"),
        ("--accumulate 3", "--accumulate must divide --batch-size = 16; got 3"),
        ("--dropout 1", "--dropout must be in [0, 1)"),
        ("--lr -1", "--lr"),
        ("--warmup 5000", "--warmup must be less than --steps = 1000; got 5000"),
        ("--temperature -1", "--temperature"),
    ],
)
def test_impossible_numbers_are_named(flags, message):
    with pytest.raises(UserError) as raised:
        parse(flags.split())
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--attention sofmax", "softmax"),
        ("--positions foo", "positions must be one of"),
        ("--attention softmax+gate=sequence", "sequence"),
        ("--batch-size 12", "--batch-size must be a multiple of data x fsdp"),
        ("--mesh fsdp=3", "--mesh must divide the number of devices"),
        ("--prompt é", "does not know the characters 'é'"),
        ("--text-file nowhere.txt", "cannot read nowhere.txt"),
    ],
)
def test_user_mistakes_exit_with_one_line_and_write_nothing(
    cli, tiny, tmp_path, monkeypatch, no_typecheck, flags, message
):
    code, _, err = cli("charlm", *tiny, "--out", tmp_path / "run", *flags.split())
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_identity_ignores_what_does_not_change_the_numbers():
    base = parse([])
    assert (
        parse(["--log-every", "7", "--keep", "9", "--out", "x", "--mesh", "fsdp=2"]).identity()
        == base.identity()
    )
    assert parse(["--lr", "0.5"]).identity() != base.identity()
    assert parse(["--seeds", "2"]).identity() != base.identity()
