"""`crosscoop push`: a network to the Hugging Face Hub."""

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
    private: bool = False,
    data_licence: str | None = None,
) -> None:
    """Put a checkpoint on the Hugging Face Hub: crosscoop push best.ckpt --repo user/name.

    Weights as safetensors, the configuration as JSON, and a model card with figures, protocol, classes, the licence of
    the data and the paper's citation. Who you are comes from `hf auth login` or HF_TOKEN. With --folder, all is written
    there instead, to look at it first.

    Args:
        ckpt_path: The checkpoint; may be given without its name, as the first word.
        run: The run's folder instead, whose best.ckpt is taken.
        repo: The repository, user/name; it is created if need be.
        folder: A new folder, instead of uploading.
        private: Make a new repository private.
        data_licence: The licence of the training data, for the card; known for the data sets of crosscoop.

    Raises:
        CrosscoopError: There is no such checkpoint, the data's licence is unknown, or the Hub refuses.
    """
    if bool(repo) == bool(folder):
        raise CrosscoopError("expected either --repo USER/NAME to upload, or --folder DIR to write there.")
    model = model_of(find_checkpoint(ckpt_path, run))
    fields = card_fields(model.about, repo or "USER/NAME", data_licence)
    if folder:
        if Path(folder).exists():
            raise CrosscoopError(f"--folder: got {folder}, which exists, expected a new one.")
        model.save_pretrained(folder, model_card_kwargs=fields)
        print(f"{folder}: model.safetensors, config.json, README.md")
        return
    try:
        url = model.push_to_hub(str(repo), private=private, model_card_kwargs=fields)
    except Exception as error:  # of the network, of the Hub, of a token that is missing
        raise CrosscoopError(
            f"repo: {repo} could not be written ({error}). Log in with `hf auth login`, and give a repository of yours."
        ) from error
    print(url)


def model_of(checkpoint: Path) -> HubModel:
    """A checkpoint's network in the form of the Hub.

    Raises:
        CrosscoopError: It is an exported graph.
    """
    network, about = read_network(checkpoint)
    if not isinstance(network, CooperativeNetwork):
        raise CrosscoopError(f"ckpt_path: got {checkpoint}, expected a checkpoint or a .safetensors file.")
    model = HubModel(about=asdict(about))
    model.network.load_state_dict(network.state_dict())
    return model
