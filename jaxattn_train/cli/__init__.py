"""The command line of the training application.

A task's configuration is a frozen dataclass composed of groups of options (`options.py` has those that tasks share).
tyro makes a flag of every field and its --help of the docstrings below them. A preset is an instance: the first flag
that is read, --preset, says which one gives the defaults, and the other flags replace single fields. The `check`
methods then raise a `UserError` that names the flag, what it was and what is accepted, before anything is loaded.
"""
