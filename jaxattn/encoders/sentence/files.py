"""The files of sentence-transformers around an encoder: modules.json, the pooling, dense layers, prompts."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxattn.core.checks import check_choice
from jaxattn.encoders.extra import optional
from jaxattn.encoders.sentence.dense import Dense
from jaxattn.encoders.settings import read_settings, require, setting
from jaxattn.encoders.tokenizer import SETTINGS
from jaxattn.encoders.weights import SINGLE, open_file, weight_files

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
# Where the longest text is; older versions name the family of models in place of "bert".
LIMITS, ANY_LIMITS = "sentence_bert_config.json", "sentence_*_config.json"
FILES = (MODULES, PROMPTS, ANY_LIMITS)
KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
# The older settings of the pooling, in the order in which several are concatenated.
POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
SUPPORTED = ("cls", "max", "mean")


@dataclasses.dataclass(frozen=True)
class SentenceConfig:
    """What follows the encoder.

    Attributes:
        encoder: sub-folder of the encoder; "" for the folder itself.
        pooling: "cls", "max" or "mean"; several are concatenated.
        dense: sub-folders of dense layers, in order.
        normalize: whether embeddings have length 1.
        max_length: the longest text, in tokens; None for the encoder's limit.
        prompts: names and texts that the model was trained to read before inputs of several kinds.
        prompt: the one read by default.
    """

    encoder: str = ""
    pooling: tuple[str, ...] = ("mean",)
    dense: tuple[str, ...] = ()
    normalize: bool = False
    max_length: int | None = None
    prompts: tuple[tuple[str, str], ...] = ()
    prompt: str = ""

    def __post_init__(self):
        for name in self.pooling or (None,):
            check_choice("pooling", name, SUPPORTED)


def read_modules(folder: Path) -> list[tuple[str, str]]:
    """Kind and sub-folder of every module, in order.

    Raises:
        ValueError: no modules.json, a module of another kind, or kinds in an order that is not supported.
    """
    path = folder / MODULES
    if not path.is_file():
        raise ValueError(
            f"name_or_path must hold a {MODULES}, which says how vectors of tokens become one; {folder} has none. "
            "SentenceEncoder(TextEncoder.from_pretrained(name), pooling=('mean',), normalize=True) takes any encoder."
        )
    try:
        found = [(row["type"].rpartition(".")[2], row["path"]) for row in json.loads(path.read_text("utf-8"))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no list of modules: {error!r}") from error
    kinds = [kind for kind, _ in found]
    for kind in kinds:
        check_choice(f"type in {path}", kind, KINDS)
    wanted = sorted(kinds, key=KINDS.index)
    if kinds != wanted or kinds[:2] != ["Transformer", "Pooling"] or set(map(kinds.count, KINDS[:2])) != {1}:
        raise ValueError(
            f"modules in {path} must be a Transformer, a Pooling, then Dense, then Normalize; got {', '.join(kinds)}."
        )
    return found


def read_config(folder: Path) -> SentenceConfig:
    """The settings of a folder.

    Raises:
        ValueError: something that would change the embeddings is not supported; the message names it.
    """
    paths: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for kind, path in read_modules(folder):
        paths[kind].append(path)
    encoder = paths["Transformer"][0]
    pooling = read_settings(folder / paths["Pooling"][0])
    require(pooling, {"include_prompt": (True,)})
    limits = _optional_settings(folder / encoder, ANY_LIMITS)
    require(limits, {"do_lower_case": (False,)})
    tokenizer = _optional_settings(folder / encoder, SETTINGS)  # newer versions keep the limit there
    more = _optional_settings(folder, PROMPTS)
    prompts, default = more.get("prompts") or {}, more.get("default_prompt_name")
    if default is not None:
        check_choice("default_prompt_name", default, tuple(prompts))
    return SentenceConfig(
        encoder=encoder,
        pooling=_pooling(pooling),
        dense=tuple(paths["Dense"]),
        normalize=bool(paths["Normalize"]),
        max_length=limits.get("max_seq_length") or tokenizer.get("model_max_length"),
        prompts=tuple((name, text) for name, text in prompts.items() if text),
        prompt="" if default is None else prompts[default],
    )


def _pooling(source: Mapping[str, Any]) -> tuple[str, ...]:
    modes = source.get("pooling_mode")
    if modes is None:
        modes = [mode for name, mode in POOLINGS.items() if setting(source, name, False)] or ["mean"]
    return (modes,) if isinstance(modes, str) else tuple(modes)


def _optional_settings(folder: Path, pattern: str) -> dict[str, Any]:
    found = sorted(folder.glob(pattern))
    return read_settings(folder, found[0].name) if found else {}


def read_dense(folder: Path, **options: Any) -> Dense:
    """A dense layer with its parameters; `options` are dtype and param_dtype."""
    source = read_settings(folder)
    require(source, {"use_residual": (False,), "module_input_name": ("sentence_embedding",)})
    require(source, {"module_output_name": ("sentence_embedding",)})
    layer = nnx.eval_shape(
        lambda: Dense(
            setting(source, "in_features", 0),
            setting(source, "out_features", 0),
            activation=setting(source, "activation_function", "torch.nn.Tanh").rpartition(".")[2],
            use_bias=setting(source, "bias", True),
            rngs=nnx.Rngs(0),
            **options,
        )
    )
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_file(weight_files(folder)[0]))
        for ours, theirs in ((layer.linear.kernel, "weight"), (layer.linear.bias, "bias")):
            if ours is not None:
                array = file.get_tensor(f"linear.{theirs}")
                if array.shape != ours.shape[::-1]:
                    raise ValueError(
                        f"linear.{theirs} in {folder} must be {ours.shape[::-1]}; got {array.shape}."
                    )
                ours.set_value(jnp.asarray(array.T, options["param_dtype"]))
    return layer


def write_files(folder: Path, config: SentenceConfig, dense: Sequence[Dense], width: int) -> None:
    """Writes everything but the encoder, as sentence-transformers reads it."""
    modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
    flags: dict[str, Any] = {name: mode in config.pooling for name, mode in POOLINGS.items()}
    if config.pooling != tuple(mode for name, mode in POOLINGS.items() if flags[name]):
        flags = {"pooling_mode": config.pooling}  # which only newer versions read
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **flags})
    for layer in dense:
        modules.append(("Dense", f"{len(modules)}_Dense"))
        kernel, bias = layer.linear.kernel, layer.linear.bias
        _write(
            folder / modules[-1][1] / "config.json",
            {
                "in_features": kernel.shape[0],
                "out_features": kernel.shape[1],
                "bias": bias is not None,
                "activation_function": f"torch.nn.{layer.activation}",
            },
        )
        arrays = {"linear.weight": np.ascontiguousarray(np.asarray(kernel[...]).T)}
        if bias is not None:
            arrays["linear.bias"] = np.asarray(bias[...])
        optional("safetensors.numpy").save_file(arrays, folder / modules[-1][1] / SINGLE, {"format": "pt"})
    if config.normalize:
        modules.append(("Normalize", f"{len(modules)}_Normalize"))
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    _write(folder / MODULES, rows)
    _write(folder / LIMITS, {"max_seq_length": config.max_length, "do_lower_case": False})
    names = {text: name for name, text in config.prompts}
    _write(
        folder / PROMPTS, {"prompts": dict(config.prompts), "default_prompt_name": names.get(config.prompt)}
    )


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
