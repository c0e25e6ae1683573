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
# # Attention over a tree
#
# Text has paragraphs, sentences and words. Hierarchical self-attention takes such a tree, and every node attends to each
# sibling as a whole. This notebook draws a tree, compares its attention with softmax, measures its cost, and generates text
# with a causal model over a tree.
#
# A CPU runtime is enough. To open it in Colab, put your OWNER into
# https://colab.research.google.com/github/OWNER/jaxattn/blob/main/colab/03_hierarchical.ipynb and REPOSITORY below.

# %%
import importlib.util
import os

REPOSITORY = ""  # where you have jaxattn from: "https://github.com/OWNER/jaxattn"
if importlib.util.find_spec("jaxattn") is None:  # in Colab, whose JAX pip keeps if it is new enough
    assert REPOSITORY, "set REPOSITORY to the address that you have jaxattn from"
    os.system(f"pip install -q 'jaxattn @ git+{REPOSITORY}'")

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import jaxattn
from jaxattn import Tree, dot_product_attention, hierarchical_attention, hierarchical_weights
from jaxattn.models import BackboneConfig, LanguageModel, generate

print("jaxattn", jaxattn.__version__, "on", jax.devices()[0].platform)

# %% [markdown]
# ## 1. A tree over a text
#
# The numbers of tokens are enough: here two paragraphs, the first with two sentences.

# %%
sentences = [["the tree stands still", "its leaves do not"], ["autumn came early"]]
tokens = [word for paragraph in sentences for sentence in paragraph for word in sentence.split()]
tree = Tree.from_lengths([[len(sentence.split()) for sentence in paragraph] for paragraph in sentences])

print(tree.describe(tokens))
tree.plot(tokens)
plt.show()

# %% [markdown]
# ## 2. Its attention, beside softmax
#
# A token gives equal weight to all tokens below one sibling of one of its ancestors. Among all matrices with these blocks
# this is the one closest to softmax.

# %%
length = len(tokens)
q, k = jax.random.normal(jax.random.key(0), (2, length, 1, 16))
unit = jnp.eye(length)[:, None]  # with these values the output is the weights

softmax = dot_product_attention(q, k, unit)[:, 0]
over_tree = hierarchical_weights(q, k, tree)[0]
causal = hierarchical_weights(q, k, tree, is_causal=True)[0]

figure, axes = plt.subplots(1, 3, figsize=(13, 4.4))
for axis, weights, title in zip(
    axes, [softmax, over_tree, causal], ["softmax", "tree", "tree, causal"], strict=True
):
    axis.imshow(weights, cmap="Blues", vmin=0)
    axis.set_xticks(range(length), tokens, rotation=90)
    axis.set_yticks(range(length), tokens)
    axis.set_title(title)
figure.tight_layout()
plt.show()

np.testing.assert_allclose(over_tree.sum(-1), 1, atol=1e-5)

# %% [markdown]
# How close? By the theorem behind the mechanism, the divergence of the rows from softmax is the tree's free energy, which
# `hierarchical_energy` returns, plus the log partition functions of softmax.

# %%
scores = jnp.einsum("tnh,snh->ts", q, k) / 16**0.5
divergence = (over_tree * (jnp.log(over_tree) - jax.nn.log_softmax(scores))).sum()
energy = jaxattn.hierarchical_energy(q, k, tree)[0]
print("divergence          ", divergence)
print("T phi + sum of log Z", length * energy + jax.nn.logsumexp(scores, axis=-1).sum())

flat = hierarchical_weights(q, k, Tree.uniform(length, length))[0]
print("a tree with one inner node is softmax, to", abs(flat - softmax).max())

# %% [markdown]
# ## 3. What it costs
#
# Forward and backward, over a uniform tree: nodes of 64 tokens, then of 16 of those.

# %%
lengths = [256, 512, 1024, 2048, 4096]


def milliseconds(attend, length):
    x = jax.random.normal(jax.random.key(0), (1, length, 2, 32))
    run = jax.jit(lambda x: jax.grad(lambda x: attend(x).sum())(x)).lower(x).compile()
    run(x).block_until_ready()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run(x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


curves = {
    "softmax": [milliseconds(lambda x: dot_product_attention(x, x, x), n) for n in lengths[:-1]],
    "tree": [
        milliseconds(lambda x, n=n: hierarchical_attention(x, x, x, Tree.uniform(n, (64, 16))), n)
        for n in lengths
    ],
    "tree, causal": [
        milliseconds(
            lambda x, n=n: hierarchical_attention(x, x, x, Tree.uniform(n, (64, 16)), is_causal=True), n
        )
        for n in lengths
    ],
}
for name, times in curves.items():
    plt.loglog(lengths[: len(times)], times, marker="o", label=name)
plt.xlabel("tokens")
plt.ylabel("ms, forward + backward")
plt.legend()
plt.show()

# %% [markdown]
# ## 4. A causal model over a tree
#
# Every token scores the means of earlier nodes with its own query, so nothing of the future reaches it. Decoding keeps only
# the nodes beside the current path through the tree.

# %%
jaxattn.testing.assert_causal(
    jax.jit(lambda q, k: hierarchical_attention(q, k, k, Tree.uniform(length, 3), is_causal=True)),
    (q, k),
    axis=0,
    out_axis=0,
)

# %%
text = "the tree stands still. its leaves do not. autumn came early. " * 40
vocabulary = sorted(set(text))
data = jnp.array([vocabulary.index(c) for c in text])

config = BackboneConfig(
    num_layers=2, num_heads=2, hidden_size=32, max_length=128,
    mechanism="tree:8x4:bias=learned", positions="learned",
)  # fmt: skip
model = LanguageModel(len(vocabulary), config, rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adamw(1e-2), wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, key):
    start = jax.random.randint(key, (8, 1), 0, len(data) - 65)
    window = data[start + jnp.arange(65)]

    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(window[:, :-1]), window[:, 1:]).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


losses = [float(train_step(model, optimizer, jax.random.key(i))) for i in range(150)]
print(f"loss {losses[0]:.2f} -> {losses[-1]:.2f} nats per character")
assert losses[-1] < 0.6

# %%
prompt = jnp.array([[vocabulary.index(c) for c in "the tree "]])
generated = generate(model, prompt, 50, key=jax.random.key(0), temperature=0.0).tokens
print("".join(vocabulary[int(i)] for i in generated[0]))

# %% [markdown]
# ## 5. Into a model that exists
#
# `inject` puts attention over a tree into chosen layers of a trained model and keeps its weights. With one inner node it is
# softmax, with more an approximation.

# %%
from jaxattn.nn import Encoder, inject

encoder = Encoder(4, 32, 4, rngs=nnx.Rngs(0))  # stands for a pretrained one
x = jax.random.normal(jax.random.key(1), (1, 64, 32))
before = encoder(x)
for branching in (64, 16, 4):
    changed = inject(encoder, lambda length, b=branching: Tree.uniform(length, b), layers=[1, 3])
    print(f"nodes of {branching:2d}: output changes by", abs(changed(x) - before).mean())
