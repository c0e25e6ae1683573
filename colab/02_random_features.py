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
# # Attention by random features
#
# Softmax attention scores every pair of tokens. With random features whose products estimate exp(x·y), the sums over keys
# are computed before any query is seen: time and memory grow linearly with length, and a decoder's state has constant
# size. The price is an error. This notebook measures it: how it depends on the features, on their number, and above all
# on the queries and keys.
#
# A CPU runtime is enough. To open it in Colab, put your OWNER into
# https://colab.research.google.com/github/OWNER/jaxattn/blob/main/colab/02_random_features.ipynb and REPOSITORY below.

# %%
import importlib.util
import os

REPOSITORY = ""  # where you have jaxattn from: "https://github.com/OWNER/jaxattn"
if importlib.util.find_spec("jaxattn") is None:  # in Colab, whose JAX pip keeps if it is new enough
    assert REPOSITORY, "set REPOSITORY to the address that you have jaxattn from"
    os.system(f"pip install -q 'jaxattn @ git+{REPOSITORY}'")

# %%
# %matplotlib inline
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jaxattn
from jaxattn import FeatureMap, diagnose, dot_product_attention, random_feature_attention

print("jaxattn", jaxattn.__version__, "on", jax.devices()[0].platform)

# %% [markdown]
# ## 1. A feature map
#
# A feature map pairs a component function (what is computed from w·x) with a weight matrix (the distribution of w).
# `calibrate` fits the component's parameters to statistics of queries and keys; nothing is trained.

# %%
length, heads, width = 256, 2, 16
q, k, v = jax.random.normal(jax.random.key(0), (3, length, heads, width))
q, k = 0.5 * q, 0.5 * k

feature_map = FeatureMap.create(jax.random.key(1), width, num_features=128, component="oprf", weights="orf")
feature_map = feature_map.calibrate(q, k)

out = random_feature_attention(q, k, v, feature_map)
exact = dot_product_attention(q, k, v)
print("relative error", float(jnp.linalg.norm(out - exact) / jnp.linalg.norm(exact)))

# %% [markdown]
# ## 2. Is it good enough? Ask `diagnose`
#
# `diagnose` takes your own queries, keys and values and measures the output error over several draws. It compares it
# with that of the plain mean of the values: an approximation that is no better is useless. The error falls with the
# square root of the number of features.

# %%
diagnosis = diagnose(q, k, v, pairs=["oprf-orf", "posrf-gaussian"], num_features=(32, 128), is_causal=True)
print(diagnosis)
diagnosis.plot()

# %% [markdown]
# The same with queries and keys four times as large. The relative variance of the estimate grows like exp(|x + y|²),
# which no affordable number of features compensates. Normalised queries and keys may: the verdict says whether they
# would help.

# %%
too_large = diagnose(
    4 * q, 4 * k, v, pairs=["oprf-orf", "posrf-gaussian"], num_features=(32, 128), is_causal=True
)
print(too_large)
assert diagnosis.verdict == "usable" and too_large.verdict != "usable"

# %% [markdown]
# ## 3. Every component on every weight matrix
#
# Here queries and keys are anisotropic in opposite ways: coordinates that are large in queries are small in keys.
# Components that balance the two (`saderf`, `aderf`) gain most.

# %%
components = ["posrf", "oprf", "saderf"]
families = ["gaussian", "orf", "mm"]  # any names in jaxattn.COMPONENTS and jaxattn.WEIGHTS
stretch = jnp.geomspace(0.25, 4.0, width)
anisotropic = (q * stretch, k / stretch, v)

pairs = [(component, family) for component in components for family in families]
measured = diagnose(*anisotropic, pairs=pairs, num_features=(128,), is_causal=True, norms=())
errors = np.array([row.error for row in measured.rows]).reshape(len(components), len(families))

figure, axis = plt.subplots(figsize=(6, 3))
image = axis.imshow(np.log10(errors), cmap="OrRd")
axis.set_xticks(range(len(families)), families)
axis.set_yticks(range(len(components)), components)
for (i, j), error in np.ndenumerate(errors):
    axis.text(j, i, f"{error:.2f}", ha="center", va="center")
axis.set_title(f"relative output error, M = 128 (averaging: {measured.averaging_error:.2f})")
plt.show()

# %% [markdown]
# ## 4. Time and memory over length
#
# Exact attention with all scores in memory takes time and memory proportional to T², features proportional to T. Raise
# `lengths` to see it; at small T there is little difference.

# %%
lengths = [256, 1024]  # [1024, 2048, 4096, 8192, 16384] for a picture worth having


def best_time(function, arguments):
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return min(times[1:])


functions = {
    "softmax, all scores": lambda q, k, v: dot_product_attention(
        q, k, v, is_causal=True, implementation="xla"
    ),
    "features, M = 128": lambda q, k, v: random_feature_attention(q, k, v, feature_map, is_causal=True),
}
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for name, function in functions.items():
    times, scratch = [], []
    for t in lengths:
        inputs = jax.random.normal(jax.random.key(0), (3, t, heads, width)) / 2
        compiled = jax.jit(function).lower(*inputs).compile()
        times.append(best_time(compiled, inputs) * 1e3)
        # Memory besides inputs and outputs, as the compiler plans it.
        scratch.append(compiled.memory_analysis().temp_size_in_bytes / 2**20)
    left.loglog(lengths, times, marker="o", label=name)
    right.loglog(lengths, scratch, marker="o", label=name)
left.set(xlabel="tokens T", ylabel="time, ms")
right.set(xlabel="tokens T", ylabel="scratch memory, MiB")
left.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 5. Generating with a state of constant size
#
# A decoder keeps one sum over the tokens so far. It does not grow, and any split of a sequence into steps gives the same
# result as one call on the whole.

# %%
state = jaxattn.random_feature_attention_init_state(1, heads, width, feature_map)
step = jax.jit(jaxattn.random_feature_attention_step)
outputs = []
for start in range(0, length, 64):  # one token at a time works the same
    piece = slice(start, start + 64)
    state, new = step(state, q[None, piece], k[None, piece], v[None, piece], feature_map)
    outputs.append(new)

whole = random_feature_attention(q, k, v, feature_map, is_causal=True)
print("largest difference", float(jnp.abs(jnp.concatenate(outputs, axis=1)[0] - whole).max()))
print("numbers in the state", sum(x.size for x in jax.tree.leaves(state)), "after", length, "tokens")

# %% [markdown]
# In a causal model the statistics behind `calibrate` must not come from the sequence that is attended to, or every token
# would learn about its future. Take them from other data or from earlier training steps, as the module
# `jaxattn.nn.RandomFeatures` does.
