"""Uploads an export to the Hugging Face Hub; the account is that of the library huggingface_hub."""

import logging
from pathlib import Path

from ..errors import Stopped, join_command
from .extras import require_libraries


def upload_folder(folder: Path, name: str) -> str:
    """Upload all files of a folder to the model `name`, and return its address.

    The model is created if it does not exist. Raises Stopped if the upload fails; then the folder
    can be uploaded again.
    """
    require_libraries("--push", "huggingface_hub")
    from huggingface_hub import HfApi, utils

    logging.getLogger("huggingface_hub").setLevel("ERROR")
    utils.disable_progress_bars()  # type: ignore[attr-defined]
    api = HfApi()
    try:
        address = api.create_repo(name, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Upload a model of nanogpt"
        )
    except Exception as error:  # the library raises many types of errors
        reason = " ".join(str(error).split())[:200]
        raise Stopped(
            f"cannot upload {folder} to {name} ({reason}): log in with `hf auth login`, check the "
            f"name, then `{join_command(['hf', 'upload', name, folder])}`"
        ) from None
    return str(address)
