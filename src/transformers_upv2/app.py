"""A local web page to try a model (extra ``app``): boxes and masks for any labels, captions, search in a folder.

An image is perceived once, when it is dropped; every other answer comes from that encoding, so labels may be typed
and their boxes change at once. `build_app` makes the page, ready to be a Space of the Hub; `serve` shows it here.
"""

from pathlib import Path
from typing import Any

from PIL import Image

from transformers_upv2.answers import Answers, Perceived, draw, read_labels

try:
    import gradio as gr
except ImportError as error:
    raise ImportError("The page needs gradio. Install it with `pip install transformers_upv2[app]`.") from error

LOOPBACK = "127.0.0.1"
COLUMNS = ["label", "score", "xmin", "ymin", "xmax", "ymax"]
_PICTURE_HEIGHT = 420  # of both pictures, so that all of the page is in sight
_THUMBNAIL = (480, 480)
_ONE_AT_A_TIME: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model"}


def build_app(folder: str | Path, images: str | Path | None = None, index: str | Path | None = None) -> gr.Blocks:
    """Make the page of a model.

    Args:
        folder: A saved model with its processor, or its name on the Hub.
        images: A folder of images that visitors can search; None: no search. It is never chosen on the page, since
            visitors must not read any folder of the server.
        index: File of their index, read if it exists and written again if images changed.

    Returns:
        The page; ``build_app(folder).launch()`` shows it.
    """
    answers = Answers(folder, images, index)
    page = Page(answers)
    with gr.Blocks(title="Uni-Perceiver v2", analytics_enabled=False) as blocks:
        gr.Markdown("# Uni-Perceiver v2\nDrop an image. It is perceived once; then ask as often as you like.")
        perceived = gr.State()
        with gr.Row():
            image = gr.Image(type="pil", label="Image", elem_id="image", height=_PICTURE_HEIGHT)
            picture = gr.Image(
                label="What was found", elem_id="picture", interactive=False, format="png", height=_PICTURE_HEIGHT
            )
        labels = gr.Textbox(", ".join(answers.known_labels), label="Labels: any names, with commas", elem_id="labels")
        threshold = gr.Slider(0, 1, 0.3, step=0.01, label="A score must be greater than", elem_id="threshold")
        found = gr.Dataframe(headers=COLUMNS, label="Detections", elem_id="found", interactive=False, max_height=260)
        with gr.Row():
            beginning = gr.Textbox(label="The caption's first words (may be empty)", elem_id="beginning")
            caption = gr.Textbox(label="Caption", elem_id="caption", interactive=False)
        write = gr.Button("Write a caption", elem_id="write")
        question = [perceived, labels, threshold]
        image.change(page.perceive, image, perceived, api_name="perceive", **_ONE_AT_A_TIME).then(
            page.detect,
            question,
            [picture, found],
            api_name="detect_first",
            api_visibility="private",
            **_ONE_AT_A_TIME,
        )
        gr.on(
            [labels.change, threshold.change],
            page.detect,
            question,
            [picture, found],
            api_name="detect",
            trigger_mode="always_last",
            show_progress="hidden",
            **_ONE_AT_A_TIME,
        )
        gr.on(
            [write.click, beginning.submit],
            page.caption,
            [perceived, beginning],
            caption,
            api_name="caption",
            **_ONE_AT_A_TIME,
        )
        if images is not None:
            _add_search(page, perceived)
    return blocks


def serve(
    folder: str | Path,
    images: str | Path | None = None,
    index: str | Path | None = None,
    host: str = LOOPBACK,
    port: int | None = None,
) -> None:
    """Show the page until it is interrupted.

    Args:
        folder: A saved model with its processor, or its name on the Hub.
        images: A folder of images to search in.
        index: File of their index.
        host: Address to listen on; the default cannot be reached from other machines.
        port: None: the first free one from 7860.
    """
    build_app(folder, images, index).launch(server_name=host, server_port=port, share=False)


class Page:
    """The page's events, each one question to the model.

    Args:
        answers: Answers them.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def perceive(self, image: Image.Image | None) -> Perceived | None:
        """Encode a new image."""
        return None if image is None else self.answers.perceive(image)

    def detect(
        self, perceived: Perceived | None, labels: str, threshold: float
    ) -> tuple[Image.Image | None, list[list[Any]]]:
        """Draw and list what has the labels."""
        if perceived is None:
            return None, []
        names = read_labels(labels)
        detections = self.answers.detect(perceived, names, threshold)
        rows = [[item["label"], round(item["score"], 3), *item["box"].values()] for item in detections]
        return draw(perceived, detections, names), rows

    def caption(self, perceived: Perceived | None, beginning: str) -> str:
        """Write a caption."""
        if perceived is None:
            raise gr.Error("Drop an image first.")
        return self.answers.caption(perceived, beginning)

    def search(self, query: str) -> list[tuple[Image.Image, str]]:
        """Find images by a text."""
        return self._gallery(query) if query.strip() else []

    def search_similar(self, perceived: Perceived | None) -> list[tuple[Image.Image, str]]:
        """Find images that are like the present one."""
        if perceived is None:
            raise gr.Error("Drop an image first.")
        return self._gallery(perceived)

    def _gallery(self, query: str | Perceived) -> list[tuple[Image.Image, str]]:
        shown = []
        for item in self.answers.search(query):
            with Image.open(item["image"]) as file:
                thumbnail = file.convert("RGB")
            thumbnail.thumbnail(_THUMBNAIL)
            shown.append((thumbnail, f"{item['score']:.2f}  {Path(item['image']).name}"))
        return shown


def _add_search(page: Page, perceived: gr.State) -> None:
    """Add the search to the page that is being made."""
    with gr.Row():
        query = gr.Textbox(label="Find images of the folder by a text", elem_id="query")
        similar = gr.Button("Find images like this one", elem_id="similar")
    gallery = gr.Gallery(label="Found", elem_id="gallery", columns=4)
    query.submit(page.search, query, gallery, api_name="search", **_ONE_AT_A_TIME)
    similar.click(page.search_similar, perceived, gallery, api_name="search_similar", **_ONE_AT_A_TIME)
