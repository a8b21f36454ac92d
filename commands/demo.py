"""`fastdiffusers demo`: placeholder while it is written."""

import argparse

HELP = "run the embedded tiny pipeline, plain and with everything on"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing yet."""


def run(args: argparse.Namespace) -> None:
    """Nothing yet."""
