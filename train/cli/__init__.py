"""The command line: options shared by all commands."""
