"""The command line: ``python -m companion train | pretrain | finetune | label | evaluate | predict | measure``.

``runs`` has what the commands that train have in common, ``corpora`` the reviews; the other files are the commands.
"""

import contextlib
import io
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import tyro

from companion.checks import printable
from companion.cli.measure import Measure
from companion.cli.train import Train
from companion.cli.transfer import FineTune, Label, PreTrain
from companion.cli.use import Evaluate, Predict

Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[PreTrain, tyro.conf.subcommand("pretrain")]
    | Annotated[FineTune, tyro.conf.subcommand("finetune")]
    | Annotated[Label, tyro.conf.subcommand("label")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Measure, tyro.conf.subcommand("measure")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The words of the command line; ``None`` takes those of the process.

    Returns:
        The exit code: 0; 2 after bad input, which one or two lines on stderr name; 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _parse(arguments).run()
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"error: {printable(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"{str(stop) or 'interrupted'}; run it again, with --resume where the command has that", file=sys.stderr)
        return 130
    return 0


def _parse(arguments: Sequence[str]) -> Train | PreTrain | FineTune | Label | Evaluate | Predict | Measure:
    """Parse the command line; what tyro prints on bad input, many lines, becomes one ValueError."""
    stderr = io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr):
            return tyro.cli(
                Command,
                prog="python -m companion",
                args=arguments,
                description="Train, measure and use a classifier; --help after a command lists its options.",
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code == 0:
            raise
        # A title, the message, further help, with rules between them; where stdout is UTF-8, in a drawn box.
        parts = re.split(r"^(?:[│ ]*[─-]{3}|╭).*$", stderr.getvalue(), flags=re.MULTILINE)
        message = " ".join(parts[min(1, len(parts) - 1)].replace("│", " ").split())
        raise ValueError(f"{re.sub(r'Error parsing __.*?: ', '', message)} (see --help)") from None
