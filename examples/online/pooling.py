"""What a model's pooler extracts, over HTTP: one vector a text, and one a token, as bytes.

The server: jaxpool serve MODEL. Of a reward model, --task gives each token's reward.
"""

from argparse import ArgumentParser
from base64 import b64decode

import numpy as np
from httpx import Client

TEXTS = ("Hello, my name is", "The capital of France is")


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", help="by default the server's first")
    parser.add_argument("--task", default="token_embed", help="embed, token_embed, classify, token_classify")
    args = parser.parse_args()

    with Client(base_url=f"http://{args.host}:{args.port}", timeout=60) as client:
        model = args.model or client.get("/v1/models").json()["data"][0]["id"]
        body = {"model": model, "input": TEXTS, "task": args.task}
        numbers = client.post("/pooling", json=body).raise_for_status().json()
        # A third of the bytes, and nothing to parse: the same as base64 of float32.
        body |= {"encoding_format": "base64", "endianness": "little"}
        encoded = client.post("/pooling", json=body).raise_for_status().json()

    for text, item, same in zip(TEXTS, numbers["data"], encoded["data"], strict=True):
        data = np.array(item["data"], np.float32)
        again = np.frombuffer(b64decode(same["data"]), "<f4").reshape(data.shape)
        difference = np.abs(data - again).max()
        print(f"Text: {text!r}\nShape: {list(data.shape)}  largest difference: {difference:.1e}\n" + "-" * 60)


if __name__ == "__main__":
    main()
