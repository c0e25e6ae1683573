"""The training application on top of jaxattn: `jaxattn-train`, in a checkout also `jaxattn-train`."""
