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
# Attention kernels as pure functions, the same as Flax NNX modules, and a small language model trained in this
# notebook. Everything runs on CPU; on a GPU or TPU runtime the same cells pick the fast kernels by themselves.

# %%
# In Colab this installs the library from its repository; elsewhere it does nothing.
import importlib.util
import os
import subprocess
import sys

if "google.colab" in sys.modules and importlib.util.find_spec("jaxattn") is None:
    repository = os.environ.get("JAXATTN_REPOSITORY", "https://github.com/jaxattn/jaxattn")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", f"jaxattn @ git+{repository}", "optax", "matplotlib"],
        check=True,
    )

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import nnx

import jaxattn
from jaxattn.models import BackboneConfig, LanguageModel, generate
from jaxattn.testing import assert_causal

print("jaxattn", jaxattn.__version__, "on", jax.devices()[0].platform)

# %% [markdown]
# ## 1. One argument, `key_bias`, is where mechanisms meet
#
# A key bias is added to the score of a key in log space. Padding is a key bias of −inf, an energy gate is a key bias of
# log g; both reach every kernel through the same argument, so they combine freely.

# %%
batch, length, heads, width = 2, 128, 4, 32
q, k, v = jax.random.normal(jax.random.key(0), (3, batch, length, heads, width))
energy = jax.random.normal(jax.random.key(1), (batch, length, heads))

gate = jaxattn.energy_gate(energy, alpha=2.0, tau=0.0, normalization="running")
out = jaxattn.dot_product_attention(q, k, v, key_bias=gate, is_causal=True)
print("output", out.shape, "gate between", float(jnp.exp(gate).min()), "and", float(jnp.exp(gate).max()))

# %% [markdown]
# ## 2. What says causal is causal
#
# The published energy gate normalises energies over the whole sequence, so under a causal mask a token still feels the
# statistics of tokens after it. `assert_causal` finds that; the running statistics pass.


# %%
def gated(normalization, **kwargs):
    def attend(q, k, v, energy):
        return jaxattn.energy_gated_attention(
            q, k, v, energy, alpha=2.0, tau=0.0, normalization=normalization, is_causal=True, **kwargs
        )

    return attend


assert_causal(gated("running"), (q, k, v, energy))
print("running: causal")
try:
    assert_causal(gated("sequence", allow_leak=True), (q, k, v, energy))
except AssertionError as error:
    print("sequence:", str(error).splitlines()[0])

# %% [markdown]
# ## 3. Morlet positions
#
# Waves under Gaussian windows. As published every window sits at position 0; with learned centres they start spread over
# the context.

# %%
figure, axes = plt.subplots(1, 2, figsize=(10, 3), sharey=True)
for axis, center in zip(axes, ["origin", "learned"], strict=True):
    start = jaxattn.morlet_init(64, 128, center=center)
    table = jaxattn.morlet_encoding(128, start.log_omega, start.log_sigma, center=start.center)
    axis.imshow(table.T, aspect="auto", cmap="RdBu", vmin=-1, vmax=1)
    axis.set(title=f"center={center!r}", xlabel="position")
axes[0].set_ylabel("dimension")
plt.show()

# %% [markdown]
# ## 4. A language model in twenty lines
#
# The text is one that ships inside Python itself, so nothing is downloaded.

# %%
import pydoc_data.topics

text = "\n".join(pydoc_data.topics.topics[name] for name in sorted(pydoc_data.topics.topics))
vocabulary = sorted(set(text))
data = jnp.array([vocabulary.index(c) for c in text[:200_000]])

config = BackboneConfig(
    num_layers=2, num_heads=4, hidden_size=64, max_length=64,
    mechanism="softmax+gate=running", positions="morlet:learned",
)  # fmt: skip
model = LanguageModel(len(vocabulary), config, rngs=nnx.Rngs(0))
optimizer = nnx.Optimizer(model, optax.adamw(3e-3), wrt=nnx.Param)


@nnx.jit
def train_step(model, optimizer, key):
    start = jax.random.randint(key, (16, 1), 0, len(data) - 65)
    window = data[start + jnp.arange(65)]

    def loss_fn(model):
        return optax.softmax_cross_entropy_with_integer_labels(model(window[:, :-1]), window[:, 1:]).mean()

    loss, grads = nnx.value_and_grad(loss_fn)(model)
    optimizer.update(model, grads)
    return loss


losses = [train_step(model, optimizer, jax.random.key(i)) for i in range(150)]
plt.plot(jnp.stack(losses))
plt.xlabel("step")
plt.ylabel("loss (nats per character)")
plt.show()
assert losses[-1] < 0.75 * losses[0]

# %%
prompt = jnp.array([[vocabulary.index(c) for c in "The "]])
tokens = generate(model, prompt, 60, key=jax.random.key(0), temperature=0.7)
print("".join(vocabulary[int(i)] for i in tokens[0]))

# %% [markdown]
# ## 5. Inside your own Flax model
#
# Every mechanism is also an `attention_fn` of Flax's own module.

# %%
rngs = nnx.Rngs(0)
mha = nnx.MultiHeadAttention(
    num_heads=4, in_features=64, decode=False, rngs=rngs,
    attention_fn=jaxattn.nn.EnergyGated().attention_fn(num_heads=4, head_dim=16, rngs=rngs),
)  # fmt: skip
print(mha(jnp.ones((2, 10, 64)), is_causal=True).shape)
