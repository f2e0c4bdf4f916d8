"""Pictures over HTTP with OpenAI's client: `messages` with an `image_url`, and the cosine of each with a text.

The server: jaxpool serve openai/clip-vit-base-patch32. Files are sent as data URLs; http(s) URLs are for a server
that was started with --allowed-media-domains.
"""

from argparse import ArgumentParser
from base64 import b64encode
from mimetypes import guess_type
from pathlib import Path

import numpy as np
from openai import OpenAI


def url_of(picture: str) -> str:
    """A URL as it is; a file as a data URL."""
    if picture.startswith(("http://", "https://", "data:")):
        return picture
    kind = guess_type(picture)[0] or "application/octet-stream"
    return f"data:{kind};base64,{b64encode(Path(picture).read_bytes()).decode()}"


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("pictures", nargs="+", help="files or URLs")
    parser.add_argument("--text", default="a photo of a cat")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", help="by default the server's first")
    args = parser.parse_args()

    with OpenAI(base_url=f"http://{args.host}:{args.port}/v1", api_key="EMPTY") as client:
        model = args.model or client.models.list().data[0].id

        def embed(part: dict) -> np.ndarray:
            body = {"messages": [{"role": "user", "content": [part]}], "model": model, "encoding_format": "float"}
            answer = client.post("/embeddings", body=body, cast_to=dict)  # `input` is all that the method for it takes
            return np.array(answer["data"][0]["embedding"])

        text = embed({"type": "text", "text": args.text})
        for picture in args.pictures:
            vector = embed({"type": "image_url", "image_url": {"url": url_of(picture)}})
            cosine = vector @ text / np.linalg.norm(vector) / np.linalg.norm(text)
            print(f"{cosine:.4f}  {Path(picture).name if len(picture) < 200 else 'picture'}  {args.text}")


if __name__ == "__main__":
    main()
