"""The command line's subcommands, one file each. `cli.py` lists them."""
