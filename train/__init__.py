"""The application on top of jaxattn: `python -m train`. Not part of the wheel."""
