"""Embeds a few texts with OpenAI's client (pip install openai). The server: jaxpool serve MODEL."""

from argparse import ArgumentParser

from openai import OpenAI

TEXTS = (
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", help="by default the server's first")
    parser.add_argument("--api-key", default="none")
    args = parser.parse_args()

    with OpenAI(base_url=f"http://{args.host}:{args.port}/v1", api_key=args.api_key) as client:
        model = args.model or client.models.list().data[0].id
        answer = client.embeddings.create(model=model, input=list(TEXTS))

    for text, item in zip(TEXTS, answer.data, strict=True):
        beginning = ", ".join(f"{x:.4f}" for x in item.embedding[:8])
        print(f"Text: {text!r}\nEmbedding: [{beginning}, ...] (size={len(item.embedding)})\n" + "-" * 60)
    print(f"Tokens: {answer.usage.prompt_tokens}")


if __name__ == "__main__":
    main()
