"""The subcommands of ``python -m src`` that do not train, one file each."""
