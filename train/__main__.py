"""`python -m train` in a checkout: the same as `jaxattn-train`."""

from jaxattn_train.__main__ import run

if __name__ == "__main__":
    run()
