"""Settings of config.json: what is read, and what is refused."""

import dataclasses

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
        ({"model_type": "albert", "inner_group_num": 2}, "inner_group_num in config.json must be 1"),
        ({"model_type": "albert", "num_hidden_groups": 3}, "num_hidden_groups .* must be from 1 to 2; got 3"),
        ({"model_type": "mpnet", "relative_attention_num_buckets": 16}, "num_buckets .* must be 32"),
        ({"model_type": "nomic_bert", "prenorm": True}, "prenorm in config.json must be False"),
        (
            {"model_type": "nomic_bert", "rope_parameters": {"rope_type": "yarn"}},
            "rope_type .* must be 'default'",
        ),
        ({"model_type": "new", "rope_scaling": {"type": "ntk", "factor": 2}}, "rope_scaling"),
        ({"position_embedding_type": "alibi", "feed_forward_type": "swiglu"}, "feed_forward_type"),
    ],
)
def test_settings_that_would_change_the_computation_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EncoderConfig.from_dict({"model_type": "bert", **SIZES, **changes})


def test_older_ways_to_write_modernbert_are_read():
    old = {"global_attn_every_n_layers": 2, "global_rope_theta": 80000.0, "local_rope_theta": 500.0}
    settings = {key: CONFIGS["modernbert"][key] for key in CONFIGS["modernbert"] if key != "layer_types"}
    layout = EncoderConfig.from_dict({**settings, **old}).layout
    assert layout.windows == (None, 4, None, 4)
    assert tuple(rotary.base for rotary in layout.rotary) == (80000.0, 500.0, 80000.0, 500.0)


def test_other_names_of_the_same_settings_are_read():
    new = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 24}
    old = {
        "n_embd": 16,
        "n_head": 2,
        "n_layer": 2,
        "n_inner": 24,
        "rotary_emb_base": 1000,
        "rotary_emb_fraction": 1.0,
    }
    nomic = {"model_type": "nomic_bert", "activation_function": "swiglu", "n_positions": 8192}
    config = EncoderConfig.from_dict(
        {**nomic, **old, "layer_norm_epsilon": 1e-12, "rotary_scaling_factor": 2}
    )
    assert config.max_length == 2048  # plain positions up to the length of training
    expected = EncoderConfig.from_dict({"model_type": "nomic_bert", **new})
    assert dataclasses.replace(config, source="{}") == dataclasses.replace(expected, source="{}")
    gte = EncoderConfig.from_dict(
        {"model_type": "new", **new, "rope_theta": 5e5, "position_embedding_type": "rope"}
    )
    assert gte.model_type == "gte" and gte.layout.rotary[1].base == 5e5
