"""Asks for smaller vectors of a Matryoshka model with OpenAI's client (pip install openai).

The server: jaxpool serve MODEL --hf-overrides '{"is_matryoshka": true}'. Most models' files do not say it themselves.
"""

from argparse import ArgumentParser

from openai import OpenAI

TEXT = "Follow the white rabbit."


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", help="by default the server's first")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--dimensions", type=int, default=256)
    args = parser.parse_args()

    with OpenAI(base_url=f"http://{args.host}:{args.port}/v1", api_key=args.api_key) as client:
        model = args.model or client.models.list().data[0].id
        whole = client.embeddings.create(model=model, input=TEXT).data[0].embedding
        cut = client.embeddings.create(model=model, input=TEXT, dimensions=args.dimensions).data[0].embedding

    print(f"Text: {TEXT!r}")
    for vector in (whole, cut):
        length = sum(x * x for x in vector) ** 0.5
        beginning = ", ".join(f"{x:.4f}" for x in vector[:4])
        print(f"Dimensions: {len(vector)}  length: {length:.4f}\nEmbedding: [{beginning}, ...]\n" + "-" * 60)


if __name__ == "__main__":
    main()
