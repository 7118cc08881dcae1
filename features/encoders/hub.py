"""Files of the Hugging Face hub: in its cache, or downloaded; and what is said where neither is to be had."""

import re
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from tiling.jobs.errors import RequestError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_SHOWN_KEYS = 10


def hub_file(name: str, repository: str, files: tuple[str, ...], revision: str = "", terms: str = "") -> Path:
    """The first of `files` that OWNER/NAME has. Raises RequestError where none can be had.

    name: what the user called it. terms: its licence.
    """
    for file in files:
        cached = try_to_load_from_cache(repository, file, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    reason: Exception = FileNotFoundError("no weights file there")
    for file in files:
        try:
            return Path(hf_hub_download(repository, file, revision=revision or None))
        except LocalEntryNotFoundError as error:  # no network
            reason = error
            break
        except EntryNotFoundError:
            continue
        except (OSError, HfHubHTTPError) as error:
            reason = error
            break
    raise RequestError(not_there(name, repository, reason, terms)) from reason


def not_there(name: str, repository: str, error: Exception, terms: str = "") -> str:
    """Where to ask for a repository's weights, and where they go."""
    licence = f" ({terms})" if terms else ""
    return (
        f"--encoder {name}: not in the hub's cache {constants.HF_HUB_CACHE}, and not to be had from the network "
        f"({in_short(error)}); where it has terms, accept them{licence} on https://huggingface.co/{repository} and "
        f"`hf auth login`; then on a machine with internet run `hf download {repository}` and copy the folder "
        f"models--{repository.replace('/', '--')} from its cache to this one (HF_HOME says where the cache is), "
        "or name the weights file with --weights FILE"
    )


def in_short(error: Exception) -> str:
    """The error in one line, of long lists of keys the first ten and the count."""
    lines = []
    for line in str(error).strip().splitlines() or [type(error).__name__]:
        what, keys = line.partition(": ")[0].strip(), re.findall(r'"([^"]+)"', line)
        more = f" … ({len(keys)})" if len(keys) > _SHOWN_KEYS else ""
        lines.append(f"{what}: {', '.join(keys[:_SHOWN_KEYS])}{more}" if len(keys) > 1 else line.strip())
    return "; ".join(lines[:_SHOWN_KEYS])
