"""What is refused reaches the person once, without a traceback, and also where Snakemake is told to be quiet."""

import sys

from snakemake.settings.enums import Quietness


class Refused(WorkflowError):
    """Shown to the person as its message, without the place in our rules that passes it on, which explains nothing."""

    __traceback__ = property(lambda self: None, lambda self, value: None)

    def __init__(self, text):
        super().__init__(text)
        output = workflow.output_settings
        if Quietness.ALL in (output.quiet or ()) and not output.dryrun:
            print(text, file=sys.stderr)  # Snakemake would end without a word
