"""Reranks documents over HTTP, in the form that Jina's and Cohere's clients use.

The server: jaxpool serve BAAI/bge-reranker-v2-m3 --task score.
"""

from argparse import ArgumentParser

from httpx import Client

QUERY = "What is the capital of China?"
DOCUMENTS = (
    "Gravity is a force that attracts two bodies towards each other.",
    "The capital of China is Beijing.",
    "China has the second largest population of all countries.",
)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", help="by default the server's first")
    parser.add_argument("--top-n", type=int, default=0, help="0: all")
    args = parser.parse_args()

    with Client(base_url=f"http://{args.host}:{args.port}", timeout=60) as client:
        model = args.model or client.get("/v1/models").json()["data"][0]["id"]
        body = {"model": model, "query": QUERY, "documents": DOCUMENTS, "top_n": args.top_n}
        answer = client.post("/rerank", json=body).raise_for_status().json()

    print(f"Query: {QUERY!r}\n" + "-" * 60)
    for place, found in enumerate(answer["results"], 1):
        print(f"{place}. {found['relevance_score']:.4f}  [{found['index']}] {found['document']['text']}\n" + "-" * 60)


if __name__ == "__main__":
    main()
