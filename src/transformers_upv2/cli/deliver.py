"""Verbs that hand a model on: `push`, `export` and `serve`."""

import argparse
import socket
from pathlib import Path

from transformers_upv2.cli.common import (
    Verbs,
    add_json_option,
    add_model_argument,
    add_size_option,
    add_verb,
    check_model,
    index_file,
    names,
    positive,
    print_json,
    quiet_libraries,
)

MOST_PORTS = 65535


def add_verbs(verbs: Verbs) -> None:
    """Add the verbs of this file."""
    _add_push(verbs)
    _add_export(verbs)
    _add_serve(verbs)


def _add_push(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "push",
        push,
        "upload a complete folder to the Hub: model, processor, label sets, card and code",
        [
            "hf auth login                                   # once",
            "upv2 push runs/photos me/my-detector --private",
        ],
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a saved model with its processor and card")
    parser.add_argument("repository", metavar="REPO", help="its name on the Hub, user/name; made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    add_json_option(parser)


def push(options: argparse.Namespace) -> None:
    """Upload a folder."""
    quiet_libraries()

    from transformers_upv2.hub import push_to_hub

    address = push_to_hub(options.folder, options.repository, private=options.private or None)
    if options.json:
        print_json({"commit": address})
    else:
        print(f"uploaded: {address}")


def _add_export(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "export",
        export,
        "write a model as ONNX graphs that run without this package (extra `onnx`)",
        [
            "upv2 export runs/photos --out runs/photos_onnx",
            "upv2 export me/my-detector --out onnx --image-size 480 640 --tasks detection",
        ],
    )
    add_model_argument(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the graphs go")
    add_size_option(parser, "fixed size of the images (default: the processor's `pad_size`)")
    parser.add_argument("--tasks", type=names, help='tasks that must work, "detection, retrieval" (default: all)')
    add_json_option(parser)


def export(options: argparse.Namespace) -> None:
    """Write the graphs of a model."""
    quiet_libraries()

    from transformers_upv2 import UniPerceiverV2ForMultiTask, UniPerceiverV2Processor
    from transformers_upv2.export import export_onnx

    check_model(options.model)
    pad_size = UniPerceiverV2Processor.from_pretrained(options.model).image_processor.pad_size
    if options.image_size is None and pad_size is None:
        raise ValueError(
            "`--image-size` must be given, since the processor pads to no fixed size. Pass HEIGHT and WIDTH."
        )
    height, width = options.image_size or (pad_size["height"], pad_size["width"])
    model = UniPerceiverV2ForMultiTask.from_pretrained(options.model)
    files = [str(file) for file in export_onnx(model, options.out, height, width, options.tasks)]
    if options.json:
        print_json({"files": files})
    else:
        print("\n".join(files))


def _add_serve(verbs: Verbs) -> None:
    parser = add_verb(
        verbs,
        "serve",
        serve,
        "open a web page to try a model (extra `app`)",
        [
            "upv2 serve model_cards/uniperceiver-v2-tiny",
            "upv2 serve runs/photos --images photos --index photos.safetensors --port 8000",
        ],
    )
    add_model_argument(parser)
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="images that visitors can search")
    parser.add_argument("--index", type=index_file, metavar="FILE", help="keep the index of these images here")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=port, help="port to listen on (default: the first free one from 7860)")


def serve(options: argparse.Namespace) -> None:
    """Show the page until it is interrupted."""
    _check_address(options.host, options.port)
    quiet_libraries()
    check_model(options.model)

    from transformers_upv2.app import serve as show_page

    show_page(options.model, options.images, options.index, options.host, options.port)


def port(text: str) -> int:
    """Read the number of a port."""
    number = positive(text)
    if number > MOST_PORTS:
        raise argparse.ArgumentTypeError(f"must be at most {MOST_PORTS}, got {number}")
    return number


def _check_address(host: str, number: int | None) -> None:
    """Refuse an address that cannot be listened on, which the server would try a hundred times."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, number or 0), family=family).close()
    except OSError as error:
        raise ValueError(
            f"`--host` and `--port` must be a free address of this machine, got {host!r} and {number} ({error}). "
            "Choose another, or leave them out."
        ) from error
