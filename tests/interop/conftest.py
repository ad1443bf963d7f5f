"""Silences the progress bars of transformers, so that tests see only the output of nanogpt."""

import transformers

transformers.utils.logging.disable_progress_bar()
