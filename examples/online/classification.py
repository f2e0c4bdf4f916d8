"""Classifies a few texts over HTTP. The server: jaxpool serve jason9693/Qwen2.5-1.5B-apeach --task classify."""

from argparse import ArgumentParser

from httpx import Client

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
    args = parser.parse_args()

    with Client(base_url=f"http://{args.host}:{args.port}", timeout=60) as client:
        model = args.model or client.get("/v1/models").json()["data"][0]["id"]
        answer = client.post("/classify", json={"model": model, "input": TEXTS}).raise_for_status().json()

    for text, item in zip(TEXTS, answer["data"], strict=True):
        numbers = ", ".join(f"{p:.4f}" for p in item["probs"])
        print(f"Text: {text!r}\nClass probabilities: [{numbers}] (size={item['num_classes']})")
        print(f"Class: {item['label']}\n" + "-" * 60)


if __name__ == "__main__":
    main()
