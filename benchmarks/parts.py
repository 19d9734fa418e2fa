"""Runs the parts of one side, so that one that fails is told and the others go on."""

import argparse
import gc
import sys
import traceback
from collections.abc import Callable

from common import report


def each_part(side: str, functions: dict[str, Callable], arguments: argparse.Namespace, *inputs) -> None:
    for name, function in functions.items():
        if name not in arguments.parts:
            continue
        try:
            function(*inputs, arguments)
        except Exception as error:  # a peer may lack a model, a card memory: whatever it is, the other parts are of use
            traceback.print_exc(file=sys.stderr)
            first = (str(error).splitlines() or [""])[0]
            report(part=name, side=side, failed=f"{type(error).__name__}: {first[:200]}")
        gc.collect()
