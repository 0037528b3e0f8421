"""`crosscoop demo`: a local page to play with trained networks."""

import errno
import os
import socket
import threading
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from crosscoop.ablation.engine import signals_raised
from crosscoop.checkpoints.read import read_checkpoint
from crosscoop.data import Sample
from crosscoop.data.loaders import open_data
from crosscoop.errors import CrosscoopError
from crosscoop.evaluation.inference import Inference
from crosscoop.files import note
from crosscoop.prediction import play as room
from crosscoop.prediction.play import Loaded, Scene, introduce, open_networks, play, read_scene, scene_of

MAX_FILE = 32 * 2**20
"""Maximum size of an uploaded file in bytes."""

PORTS = range(7860, 7960)
"""The ports among which a free one is chosen."""

SAMPLES = 12
"""Number of images of the run's data to choose from."""

LAYOUT = """
.gradio-container { overflow: clip !important }
.shown { overflow: visible !important }
.samples .grid-wrap { min-height: 0; padding-top: 2rem }
.samples .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) }
.samples .thumbnail-lg { min-width: 0; width: 100% }
@media (max-width: 600px) {
  .samples .grid-container { grid: auto / auto-flow 28%; overflow-x: auto }
}
"""
"""Corrections of Gradio's layout: the legend stays in view, and all samples are visible, below their label."""

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; frame-ancestors 'none'"
)
"""Content-Security-Policy: a browser does not load anything from elsewhere, whatever the page refers to."""


def demo(
    networks: Sequence[str],
    host: str = "127.0.0.1",
    port: int | None = None,
    data__dataset__root: str | None = None,
    own_size: bool = False,
    fast: bool = False,
    device: str | None = None,
    inference: Inference = Inference(),  # noqa: B008
) -> None:
    """Open a local page on which to try networks on images.

      crosscoop demo runs/demo                  # and open the address that it prints
      crosscoop demo runs/demo runs/baseline    # side by side
      crosscoop demo best.onnx
      crosscoop demo hf-hub:USER/NAME

    The page shows the classes of every branch and of the ensemble over an image of yours, or of the test split of the
    first run, where they differ, and what changes if connections are switched off (not in .onnx files). Only this
    computer can reach it, and it sends nothing elsewhere. Uploaded images are deleted when the command ends (Ctrl-C).

    Args:
        networks: Runs' folders (their best.ckpt is used), checkpoints, .onnx or .safetensors files from crosscoop
            export, or hf-hub:USER/NAME from crosscoop push; all with the same classes.
        host: The address to listen on; with 0.0.0.0, every computer that can reach this one can use the page.
        port: The port to listen on; by default the first free one from 7860.
        data__dataset__root: The folder of the first run's data, if it has been moved since.
        own_size: Predict each image at its original size, even if a network was trained on resized images.
        fast: Fold batch norms and, on processors with native support, compute in bfloat16, see crosscoop predict.
        device: Device to use, such as cpu or cuda:1; by default a GPU if there is one.
        inference: How the logits of an image are computed.

    Raises:
        CrosscoopError: Gradio is missing, a network cannot be read, their classes differ, or the port is in use.
    """
    if find_spec("gradio") is None:
        raise CrosscoopError(
            "demo needs Gradio, which is not installed. Install it with pip install 'crosscoop[demo]'."
        )
    port = free_port(host, port)
    with signals_raised(), TemporaryDirectory(prefix="crosscoop-demo-") as folder:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}  # read when Gradio is imported
        loaded = open_networks(networks, inference, device, own_size, fast)
        page = make_page(loaded, samples_of(loaded, data__dataset__root))
        try:
            address = serve(page, host, port)
            print(f"{address} shows {', '.join(networks)}. Ctrl-C ends it.", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            print("\nEnded.")
        finally:
            page.close(verbose=False)


def samples_of(networks: Sequence[Loaded], root: str | None = None) -> list[Sample]:
    """Return some images of the test split on which the first network with data was trained, evenly spaced.

    Args:
        networks: The networks.
        root: The data's folder, if it has been moved since.

    Returns:
        The samples; none if the data cannot be found, which is noted.
    """
    for network in networks:
        source = Path(network.source)
        if source.suffix in (".onnx", ".safetensors") or not source.is_file():
            continue
        try:
            data = open_data(read_checkpoint(source)["crosscoop"]["config"], root)
            data.look_up(data.dataset.test_split)
            samples = data.samples(data.dataset.test_split)
        except CrosscoopError as error:
            note(f"{network.name}: no sample images ({error})")
            continue
        places = np.linspace(0, len(samples) - 1, min(SAMPLES, len(samples))).round().astype(int)
        return [samples[place] for place in places]
    return []


def make_page(networks: Sequence[Loaded], samples: Sequence[Sample]) -> Any:
    """Return the page as Gradio's `Blocks`.

    Args:
        networks: The networks.
        samples: Images to choose from.
    """
    import gradio

    hint = f"Drop or pick an image{', or choose one of the samples' * bool(samples)}."
    start = {"hint": hint, **introduce(networks)}
    style, script = (Path(room.__file__).with_suffix(suffix).read_text("utf-8") for suffix in (".css", ".js"))
    switchable = [network for network in networks if network.points]

    def show(scene: Scene | CrosscoopError | None, *switches: Sequence[str]) -> dict[str, Any]:
        if scene is None:
            return start
        chosen = {id(network): points for network, points in zip(switchable, switches, strict=True)}
        connected = [[point for point in each.points if point in chosen[id(each)]] for each in networks]
        try:
            if isinstance(scene, CrosscoopError):
                raise scene
            return play(networks, scene, connected)
        except CrosscoopError as error:
            return {"error": str(error), "rows": []}

    def upload(path: str, *switches: Sequence[str]) -> tuple[Scene | CrosscoopError, None, dict[str, Any]]:
        scene = attempt(read_scene, Path(path))
        Path(path).unlink(missing_ok=True)
        return scene, None, show(scene, *switches)

    def choose(event: gradio.SelectData, *switches: Sequence[str]) -> tuple[Scene | CrosscoopError, dict[str, Any]]:
        scene = attempt(scene_of, samples[event.index])
        return scene, show(scene, *switches)

    with gradio.Blocks(title="crosscoop demo", analytics_enabled=False, fill_width=True) as page:
        scene = gradio.State()
        gradio.HTML("<h1>crosscoop demo</h1>")
        with gradio.Row():
            with gradio.Column(scale=1, min_width=260):
                file = gradio.File(label="Your image", file_types=["image"], height=150)
                boxes = [
                    gradio.CheckboxGroup(network.points, value=network.points, label=f"Connections of {network.name}")
                    for network in switchable
                ]
                if samples:
                    gallery = gradio.Gallery(
                        [thumbnail(sample) for sample in samples],
                        label="Samples of the test split", elem_classes="samples", columns=3, height="auto",
                        object_fit="cover", allow_preview=False, interactive=False, buttons=[],
                    )  # fmt: skip
            with gradio.Column(scale=5, min_width=320):
                shown = gradio.HTML(
                    start,
                    html_template='<div class="play"></div>',
                    css_template=style,
                    js_on_load=script,
                    elem_classes="shown",
                )
        private = {"api_visibility": "private"}
        file.upload(upload, [file, *boxes], [scene, file, shown], **private)
        if samples:
            gallery.select(choose, boxes, [scene, shown], **private)
        for box in boxes:
            box.change(show, [scene, *boxes], shown, **private)
    return page


def attempt(function: Callable[[Any], Scene], argument: object) -> Scene | CrosscoopError:
    """Return what a function returns, or the error that it raises."""
    try:
        return function(argument)
    except CrosscoopError as error:
        return error


def thumbnail(sample: Sample) -> Image.Image:
    """Return a sample's image with sides of at most 240 pixels; grey if it cannot be read."""
    try:
        image = Image.fromarray(sample.image())
    except CrosscoopError as error:
        note(str(error))
        return Image.new("RGB", (240, 160), "gray")
    image.thumbnail((240, 240))
    return image


def serve(page: Any, host: str, port: int) -> str:
    """Serve the page from a thread, and return its address.

    Args:
        page: The page.
        host: The address to listen on.
        port: The port to listen on.
    """
    import gradio

    for name in ("NO_PROXY", "no_proxy"):  # Gradio requests its own address once, which no proxy can reach
        os.environ[name] = ",".join([*filter(None, [os.environ.get(name)]), host, "localhost"])
    theme = gradio.themes.Default(primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"])
    _, address, _ = page.launch(
        server_name=host, server_port=port, share=False, inbrowser=False, quiet=True, prevent_thread_lock=True,
        max_file_size=MAX_FILE, state_session_capacity=8, app_kwargs={"middleware": [(Policy, (), {})]},
        footer_links=[], run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False,
        css=LAYOUT, theme=theme,
    )  # fmt: skip
    return str(address)


def free_port(host: str, port: int | None) -> int:
    """Return a port on which nothing listens yet.

    Args:
        host: The address to listen on.
        port: The wanted port; None looks for one from `PORTS`.

    Raises:
        CrosscoopError: The port is in use or does not exist, or the address is not one of this computer's.
    """
    for number in PORTS if port is None else [port]:
        try:
            socket.create_server((host, number)).close()
            return number
        except (OSError, OverflowError) as error:
            reason = error
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                break
    raise CrosscoopError(
        f"got --host {host} and --port {port or f'from {PORTS.start}'} ({reason}), expected an address of this "
        "computer and a free port. Choose another port, or leave out both."
    )


class Policy:
    """Middleware that adds the content security policy to each response.

    Args:
        app: The application.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Handle a request."""

        async def with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        await self.app(scope, receive, with_policy)
