"""Uploads to and downloads from the Hub, with readable errors."""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from transformers import PreTrainedConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

try:  # The client that huggingface_hub speaks through, from its version 2 on, and before.
    from httpx2 import TransportError
except ImportError:
    from httpx import TransportError

from hf_segkd.models import MODELS, SegmentationImageProcessor
from hf_segkd.recipe import dump, load_yaml
from hf_segkd.values import without_paths

try:
    from transformers import SegformerImageProcessorPil
except ImportError:  # before 5.4, when the processor without torchvision had the plain name
    from transformers import SegformerImageProcessor as SegformerImageProcessorPil

LAST_CHECKPOINT = "last-checkpoint"
# Training state, pickles and TensorBoard's logs, which name the machine, stay at home.
NOT_RELEASED = ["checkpoint-*", "_*", "*.bin", "*.pt", "*.pth", "*.log", "runs/*", ".*"]
WITH_PATHS = ("metrics.json", "benchmark.json", "conversion.json")
STUDENT_FILES = ["*.json", "model*.safetensors", "*.py"]


class HubError(ValueError):
    """The Hub refused or could not be reached; the message says what to do."""


def open_repository(
    repo_id: str, private: bool | None = None, branch: str | None = None, token: str | None = None
) -> str:
    """Make sure that a repository exists and may be written, before anything is spent on what goes into it.

    Args:
        repo_id (`str`): `"owner/name"`, or `"name"` for the token's owner. Created when it does not exist.
        private (`bool`, *optional*): Whether a new repository is private; `None` is the owner's default.
        branch (`str`, *optional*): Branch to write to; created when it does not exist.
        token (`str`, *optional*): Defaults to the one of `hf auth login` or `HF_TOKEN`.

    Returns:
        `str`: The full `"owner/name"`.

    Raises:
        HubError: The token is missing or wrong, may not write there, or the Hub cannot be reached.
    """
    api = HfApi(token=token)
    with hub_errors(repo_id):
        # Creating succeeds for anybody's repository that can be read, so the right to write is asked for too.
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        api.auth_check(repo_id, write=True)
        if branch is not None:
            api.create_branch(repo_id, branch=branch, exist_ok=True)
    return repo_id


def push_folder(folder: str | Path, repo_id: str, branch: str | None = None, token: str | None = None) -> str:
    """Upload a finished folder in one commit, without checkpoints and logs.

    Paths of this machine in its recipes and reports are shortened to their last part on the way; the folder keeps
    them, and with them its recipe can be run again here.

    Returns:
        `str`: Address of the commit.

    Raises:
        HubError: As [`open_repository`], or the upload broke off; the folder is untouched and the command that tries
            again is part of the message.
    """
    try:
        with tempfile.TemporaryDirectory() as temporary, hub_errors(repo_id):
            commit = HfApi(token=token).upload_folder(
                repo_id=repo_id,
                folder_path=_released_copy(Path(folder), Path(temporary)),
                revision=branch,
                ignore_patterns=NOT_RELEASED,
                commit_message="Upload student",
            )
    except HubError as error:
        raise HubError(
            f"{error}\nNothing is lost: all files are in {str(folder)!r}. To upload them again:\n"
            f"  {push_command(folder, repo_id, branch)}"
        ) from error
    return commit.commit_url


def _released_copy(folder: Path, place: Path) -> Path:
    copy = place / "released"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("checkpoint-*", "runs"))
    for file in copy.glob("recipe*.yaml"):
        recipe = load_yaml(file.read_text(encoding="utf-8"))
        if without_paths(recipe) != recipe:
            dump(without_paths(recipe), file)
    for file in (copy / name for name in WITH_PATHS):
        if file.is_file():
            content = json.loads(file.read_text(encoding="utf-8"))
            if without_paths(content) != content:
                file.write_text(json.dumps(without_paths(content), indent=2) + "\n", encoding="utf-8")
    return copy


def push_static_space(folder: str | Path, repo_id: str, private: bool | None = None, token: str | None = None) -> str:
    """Upload the folder of a static page as the Space `repo_id`, which is made where it does not exist.

    Returns:
        `str`: Address of the commit.

    Raises:
        HubError: As [`open_repository`].
    """
    api = HfApi(token=token)
    with hub_errors(repo_id):
        api.create_repo(repo_id, repo_type="space", space_sdk="static", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, repo_type="space", folder_path=folder, commit_message="Upload page"
        )
    return commit.commit_url


def push_command(folder: str | Path, repo_id: str, branch: str | None = None) -> str:
    """The command that uploads a finished folder."""
    words = ["hf-segkd", "push", str(folder), repo_id, *(["--branch", branch] if branch else [])]
    return shlex.join(words)


def fetch_checkpoint(
    repo_id: str, output_dir: str | Path, branch: str | None = None, token: str | None = None
) -> str | None:
    """Download the training state that `hub_strategy: checkpoint` uploaded, to resume from it on another machine.

    The best student so far is in the repository's root; it becomes the checkpoint that the state names as the best.

    Args:
        repo_id (`str`): `"owner/name"`.
        output_dir (`str` or `Path`): Folder of the run, which gets `checkpoint-*` folders.
        branch, token: As for [`open_repository`].

    Returns:
        `str | None`: Path of the checkpoint, `None` when the repository holds none.

    Raises:
        HubError: As [`open_repository`].
    """
    api = HfApi(token=token)
    # In the same file system, so that moving is renaming: a checkpoint is there completely or not at all.
    with tempfile.TemporaryDirectory(dir=output_dir) as temporary:
        with hub_errors(repo_id):
            if not api.file_exists(repo_id, f"{LAST_CHECKPOINT}/trainer_state.json", revision=branch):
                return None
            patterns = [f"{LAST_CHECKPOINT}/*", *STUDENT_FILES]
            api.snapshot_download(repo_id, revision=branch, local_dir=temporary, allow_patterns=patterns)
        return _place_checkpoint(Path(temporary), Path(output_dir))


def _place_checkpoint(download: Path, output_dir: Path) -> str:
    file = download / LAST_CHECKPOINT / "trainer_state.json"
    state = json.loads(file.read_text(encoding="utf-8"))
    target = output_dir / f"checkpoint-{state['global_step']}"
    if state["best_model_checkpoint"]:
        best = output_dir / Path(state["best_model_checkpoint"]).name
        if best != target:
            best.mkdir()
            for path in download.iterdir():
                if path.is_file():
                    shutil.move(path, best / path.name)
    shutil.move(download / LAST_CHECKPOINT, target)
    return str(target)


def released_processor(processor: BaseImageProcessor, config: PreTrainedConfig) -> BaseImageProcessor:
    """The image processor to save beside a student: for a native model a native one that does the same.

    So the folder of a SegFormer holds no code at all. Ours stays where transformers has no equal: models of this
    library, BGR images, bands, logits upsampled with aligned corners.

    Args:
        processor (`BaseImageProcessor`): What the student was trained with.
        config (`PreTrainedConfig`): The student's.
    """
    native = type(config) not in MODELS
    if not native or not isinstance(processor, SegmentationImageProcessor):
        return processor
    if processor.do_flip_channel_order or processor.align_corners or processor.bands:
        return processor
    names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    options = {name: value for name, value in vars(processor).items() if name in names}
    return SegformerImageProcessorPil(do_resize=processor.size is not None, size=processor.size, **options)


def pin_revision(spec: str, revision: str | None = None) -> str | None:
    """The commit that a branch or tag of a model on the Hub (`main` by default) stands for now.

    `None` for a folder. Where the Hub does not tell, `revision` as it is: loading the model will say what is wrong.

    Raises:
        ValueError: A revision of a folder.
    """
    if Path(spec).is_dir():
        if revision is not None:
            raise ValueError(f"{spec!r} is a folder, which has no revision {revision!r}. Leave the revision out.")
        return None
    try:
        config = cached_file(spec, CONFIG_NAME, revision=revision)
    except (OSError, ValueError, HfHubHTTPError):
        return revision
    # Files of the cache lie in snapshots/COMMIT.
    return extract_commit_hash(config, revision if config is None else None)


@contextmanager
def hub_errors(repo_id: str) -> Iterator[None]:
    """Turn the client's exceptions about `repo_id` into [`HubError`]; none of its messages can hold a token."""
    try:
        yield
    except (HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled, TransportError) as error:
        raise HubError(_explain(error, repo_id)) from error


def _explain(error: Exception, repo_id: str) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return f"'{repo_id}' cannot be reached: HF_HUB_OFFLINE is set. Unset it, or leave push_to_hub out."
    if isinstance(error, TransportError):
        kind = type(error).__name__
        return f"No answer from the Hub at {constants.ENDPOINT} for '{repo_id}' ({kind}). Check the connection."
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 401
    if status == 401:
        return (
            f"The Hub does not know the token used for '{repo_id}', or there is none (401). "
            "Log in with `hf auth login`, or set HF_TOKEN to a token that may write."
        )
    if status == 403:
        return (
            f"The token may not write to '{repo_id}' (403). Name a repository of your own, "
            "or use a token that its owner gave the right to write."
        )
    said = f": {error.server_message}" if error.server_message else ""
    return f"The Hub answered {status} for '{repo_id}'{said}. Try again, or look at https://status.huggingface.co."
