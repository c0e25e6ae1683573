import pytest

from train.errors import UserError
from train.tasks.charlm.config import PRESETS, parse


def test_no_subcommand_prints_the_list(cli):
    code, out, _ = cli()
    assert code == 0
    assert "charlm" in out
    assert "sample" in out


def test_an_unknown_subcommand_is_one_line(cli):
    code, _, err = cli("chralm")
    assert code == 2
    assert err.startswith("error: unknown subcommand 'chralm'")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("subcommand", ["charlm", "sample"])
def test_help_explains_every_flag(cli, subcommand):
    code, out, _ = cli(subcommand, "--help")
    assert code == 0
    assert "--seed" in out
    assert "{fixed}" not in out


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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--preset tiny", "--preset must be one of demo, study, paper"),
        ("--steps 0", "--steps must be at least 1"),
        ("--num-heads 3", "--num-heads must divide --features = 128; got 3"),
        ("--accumulate 3", "--accumulate must divide --batch-size = 16; got 3"),
        ("--dropout 1", "--dropout must be in [0, 1)"),
        ("--lr -1", "--lr"),
        ("--warmup 5000", "--warmup must be less than --steps"),
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
        ("--batch-size 12", "--batch-size must be a multiple of devices"),
        ("--fsdp 3", "--fsdp must divide the number of devices"),
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
        parse(["--log-every", "7", "--keep", "9", "--out", "x", "--fsdp", "2"]).identity() == base.identity()
    )
    assert parse(["--lr", "0.5"]).identity() != base.identity()
    assert parse(["--seeds", "2"]).identity() != base.identity()
