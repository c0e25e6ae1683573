"""Settings of config.json: what is read, and what is refused."""

import pytest

from jaxattn.models import EncoderConfig
from tests.encoders.make_encoder_fixtures import CONFIGS, SIZES


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "t5"}, "model_type must be one of 'bert'.*got 't5'"),
        ({"is_decoder": True}, "is_decoder in config.json must be False"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type in config.json must be 'absolute'",
        ),
        ({"hidden_act": "mish"}, "hidden_act must be one of 'gelu'"),
        ({"hidden_size": 15}, "hidden_size must be a multiple"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers in config.json must be of type int; got '2'"),
        ({"model_type": "deberta-v2", "embedding_size": 8}, "embedding_size in config.json must be 16"),
        ({"model_type": "deberta-v2", "pos_att_type": "c2p"}, "relative_attention is false"),
        ({"model_type": "deberta-v2", "relative_attention": True, "pos_att_type": "p2p"}, "'p2p'"),
        ({"model_type": "modernbert", "layer_types": ["full_attention"]}, "must name 2 layers; got 1"),
        ({"model_type": "modernbert", "rope_scaling": {"rope_type": "yarn"}}, "rope_scaling"),
        ({"model_type": "modernbert", "rope_parameters": {"rope_type": "yarn"}}, "rope_parameters"),
        ({"model_type": "modernbert", "mlp_dropout": 0.1}, "mlp_dropout in config.json must be 0"),
    ],
)
def test_settings_that_would_change_the_computation_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig.from_dict({"model_type": "bert", **SIZES, **changes})


def test_older_ways_to_write_modernbert_are_read():
    old = {"global_attn_every_n_layers": 2, "global_rope_theta": 80000.0, "local_rope_theta": 500.0}
    settings = {key: CONFIGS["modernbert"][key] for key in CONFIGS["modernbert"] if key != "layer_types"}
    modern = EncoderConfig.from_dict({**settings, **old}).modern
    assert modern.windows == (None, 4, None, 4)
    assert tuple(rotary.base for rotary in modern.rotary) == (80000.0, 500.0, 80000.0, 500.0)
