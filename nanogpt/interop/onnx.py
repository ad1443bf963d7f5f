"""The format ONNX, which many inference engines read, such as ONNX Runtime."""

import logging
import warnings
from pathlib import Path

import torch

from ..models import Model
from .extras import require_libraries


def write_onnx(file: Path, model: Model) -> None:
    """Write a model as a graph from `tokens` (B, T) to `logits` (B, T, V) for any B and T.

    T must be at most the block size. Raises UserError if a library is missing, and OSError if
    writing fails.
    """
    require_libraries("--to onnx", "onnx", "onnxscript")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports each missing library
    T, Dim = model.config.block_size, torch.export.Dim
    sizes = {0: Dim("batch"), **({1: Dim("time", max=T)} if T > 1 else {})}
    example = torch.zeros(2, min(2, T), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # from the inside of torch
        try:
            program = torch.onnx.export(
                model,
                (example,),
                input_names=["tokens"],
                output_names=["logits"],
                dynamic_shapes={"tokens": sizes},
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # torch may raise another error than KeyboardInterrupt
            if interruption := _find_interruption(error):
                raise interruption from None
            raise
    assert program is not None
    program.save(file)


def _find_interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """Return the KeyboardInterrupt that led to an error; None if there is none."""
    while error:
        if isinstance(error, KeyboardInterrupt):
            return error
        error = error.__cause__ or error.__context__
    return None
