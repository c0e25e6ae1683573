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
# # jaxattn in five minutes
#
# Attention kernels as pure functions, the same as Flax NNX modules, and a small language model that learns to write
# words in about half a minute. Everything runs on a CPU; on a GPU or TPU the same cells use its kernels.
#
# A CPU runtime is enough. To open it in Colab, put your OWNER into
# https://colab.research.google.com/github/OWNER/jaxattn/blob/main/colab/01_quickstart.ipynb and REPOSITORY below.

# %%
import importlib.util
import os

REPOSITORY = ""  # where you have jaxattn from: "https://github.com/OWNER/jaxattn"
if importlib.util.find_spec("jaxattn") is None:  # in Colab, whose JAX pip keeps if it is new enough
    assert REPOSITORY, "set REPOSITORY to the address that you have jaxattn from"
    os.system(f"pip install -q 'jaxattn @ git+{REPOSITORY}'")

# %%
import re
import pydoc_data.topics

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import nnx

import jaxattn
from jaxattn.models import BackboneConfig, LanguageModel, generate
from jaxattn.testing import assert_causal, assert_prefix_matches

print("jaxattn", jaxattn.__version__, "on", jax.devices()[0].platform)

# %% [markdown]
# ## 1. Mechanisms meet in one argument, `key_bias`
#
# A key bias is added to the scores of a key in log space. Padding is a key bias of −inf and an energy gate is one of
# log g. Every kernel takes the argument, so they combine freely.

# %%
batch, length, heads, width = 2, 128, 4, 32
q, k, v = jax.random.normal(jax.random.key(0), (3, batch, length, heads, width))
energy = jax.random.normal(jax.random.key(1), (batch, length, heads))

gate = jaxattn.energy_gate(energy, alpha=2.0, tau=0.0, normalization="running")
exact = jaxattn.dot_product_attention(q, k, v, key_bias=gate, is_causal=True)
tree = jaxattn.Tree.uniform(length, 16)
over_tree = jaxattn.hierarchical_attention(q, k, v, tree, key_bias=gate, is_causal=True)
print(f"gates between {jnp.exp(gate).min():.3f} and {jnp.exp(gate).max():.3f}")

# %% [markdown]
# ## 2. Causal means causal
#
# The published energy gate normalises energies over the whole sequence, so even under a causal mask each token sees
# statistics of later ones. `assert_causal` finds that; with running statistics it passes.


# %%
def gated(normalization, **options):
    def attend(q, k, v, energy):
        return jaxattn.energy_gated_attention(
            q, k, v, energy, alpha=2.0, tau=0.0, normalization=normalization, is_causal=True, **options
        )

    return jax.jit(attend)


assert_causal(gated("running"), (q, k, v, energy))
print("running: causal")
try:
    assert_causal(gated("sequence", allow_leak=True), (q, k, v, energy))
except AssertionError as error:
    print("sequence:", str(error).partition(" when")[0])

# %% [markdown]
# ## 3. A language model
#
# The text is Python's own language reference, which every CPython ships: letters, spaces, commas and full stops of it.
# A mechanism is chosen by its name, here softmax attention with an energy gate.

# %%
text = " ".join(pydoc_data.topics.topics.values()).lower()
text = re.sub(r"[^a-z .,]+", "", re.sub(r"\s+", " ", text))[:300_000]
vocabulary = sorted(set(text))
data = jnp.array([vocabulary.index(character) for character in text])
context, steps = 96, 300

config = BackboneConfig(
    num_layers=2,
    num_heads=4,
    hidden_size=128,
    max_length=context,
    mechanism="softmax+gate=none",
    positions="rotary",
)
model = LanguageModel(len(vocabulary), config, rngs=nnx.Rngs(0))
schedule = optax.warmup_cosine_decay_schedule(0.0, 6e-3, 40, steps)
optimizer = nnx.Optimizer(model, optax.adamw(schedule, b2=0.95), wrt=nnx.Param)


def write(prompt="the ", count=90):
    tokens = jnp.array([[vocabulary.index(character) for character in prompt]])
    tokens = generate(model, tokens, count, key=jax.random.key(0), temperature=0.6).tokens
    return "".join(vocabulary[int(token)] for token in tokens[0])


print("before:", write())


# %%
@nnx.jit
def train_step(model, optimizer, key):
    start = jax.random.randint(key, (24, 1), 0, len(data) - context - 1)
    window = data[start + jnp.arange(context + 1)]

    def loss_fn(model):
        logits = model(window[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, window[:, 1:]).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


keys = jax.random.split(jax.random.key(1), steps)
losses = jnp.stack([train_step(model, optimizer, key) for key in keys])

frequencies = jnp.bincount(data) / len(data)
by_frequency = -(frequencies * jnp.log(frequencies)).sum()
plt.figure(figsize=(7, 3))
plt.plot(losses, label="model")
plt.axhline(jnp.log(len(vocabulary)), color="grey", linestyle=":", label="guessing")
plt.axhline(by_frequency, color="grey", linestyle="--", label="frequencies of the letters")
plt.xlabel("step")
plt.ylabel("loss, nats per character")
plt.legend()
plt.show()
print(
    f"loss {losses[0]:.2f} -> {losses[-20:].mean():.2f}; by the frequencies of the letters {by_frequency:.2f}"
)
print("after:", write())
assert losses[-20:].mean() < 0.65 * by_frequency

# %% [markdown]
# It was trained on whole windows and generates from prefixes. That both give the same predictions can be checked:

# %%
assert_prefix_matches(nnx.jit(lambda tokens: model(tokens)), (data[None, :context],))
print("every prefix is predicted as in the whole window")

# %% [markdown]
# ## 4. Inside your own Flax model
#
# Every mechanism is also an `attention_fn` of Flax's own module.

# %%
rngs = nnx.Rngs(0)
gated_fn = jaxattn.nn.EnergyGated().attention_fn(num_heads=4, head_dim=16, rngs=rngs)
layer = nnx.MultiHeadAttention(num_heads=4, in_features=64, decode=False, attention_fn=gated_fn, rngs=rngs)
print(layer(jnp.ones((2, 10, 64)), is_causal=True).shape)

# %% [markdown]
# Next: which attention (`docs/choosing.md`),
# does my model leak? (`docs/leaks.md`), and the other notebooks beside this one.
