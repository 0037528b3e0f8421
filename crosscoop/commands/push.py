"""`crosscoop push`: an upload to the Hugging Face Hub."""

from dataclasses import asdict
from pathlib import Path

from crosscoop.checkpoints.read import find_checkpoint
from crosscoop.errors import CrosscoopError
from crosscoop.export.hub import HubModel, card_fields
from crosscoop.export.read import read_network
from crosscoop.network.cooperative import CooperativeNetwork


def push(
    ckpt_path: str | None = None,
    run: str | None = None,
    repo: str | None = None,
    folder: str | None = None,
    branch: str | None = None,
    private: bool = False,
    data_licence: str | None = None,
) -> None:
    """Upload a checkpoint to the Hugging Face Hub: crosscoop push best.ckpt --repo user/name.

    The upload consists of the weights as safetensors, the configuration as JSON, and a model card with metrics,
    protocol, classes, the licence of the data and the paper's citation. Log in with `hf auth login` or set HF_TOKEN.
    With --folder, the files are written to a folder instead, for inspection.

    Args:
        ckpt_path: The checkpoint; may be given as the first argument, without the option's name.
        run: The run's folder, whose best.ckpt is used, instead of a checkpoint.
        repo: The repository, user/name; created if necessary.
        folder: A new folder to write to, instead of uploading.
        branch: A branch to upload alone, such as bottom: one network, without connections.
        private: Make a new repository private.
        data_licence: The licence of the training data, for the model card; not needed for the data sets of crosscoop.

    Raises:
        CrosscoopError: The checkpoint does not exist, the data's licence is unknown, or the upload failed.
    """
    if bool(repo) == bool(folder):
        raise CrosscoopError(
            f"got {'both' if repo else 'neither'}, expected either --repo USER/NAME to upload, or --folder DIR to "
            "write to a folder."
        )
    model = model_of(find_checkpoint(ckpt_path, run), branch)
    fields = card_fields(model.about, repo or "USER/NAME", data_licence)
    if folder:
        if Path(folder).exists():
            raise CrosscoopError(f"--folder: got {folder}, which exists, expected a new one.")
        model.save_pretrained(folder, model_card_kwargs=fields)
        print(f"{folder}: model.safetensors, config.json, README.md")
        return
    try:
        url = model.push_to_hub(str(repo), private=private, model_card_kwargs=fields)
    except Exception as error:  # network errors, the Hub's errors, a missing token
        raise CrosscoopError(
            f"repo: {repo} could not be written ({error}). Log in with `hf auth login`, and give your own repository."
        ) from error
    print(url)


def model_of(checkpoint: Path, branch: str | None = None) -> HubModel:
    """Return a checkpoint's network, or one branch of it alone, as a model for the Hub.

    Raises:
        CrosscoopError: The file is an exported graph.
    """
    network, about = read_network(checkpoint, branch)
    if not isinstance(network, CooperativeNetwork):
        raise CrosscoopError(f"ckpt_path: got {checkpoint}, expected a checkpoint or a .safetensors file.")
    model = HubModel(about=asdict(about))
    model.network.load_state_dict(network.state_dict())
    return model
