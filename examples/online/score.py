"""Scores pairs of texts over HTTP: one with one, one with many, each with its own.

The server: jaxpool serve BAAI/bge-reranker-v2-m3 --task score.
"""

from argparse import ArgumentParser

from httpx import Client

QUESTIONS = ("What is the capital of Brazil?", "What is the capital of France?")
ANSWERS = ("The capital of Brazil is Brasilia.", "The capital of France is Paris.")


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--model", help="by default the server's first")
    args = parser.parse_args()

    with Client(base_url=f"http://{args.host}:{args.port}", timeout=60) as client:
        model = args.model or client.get("/v1/models").json()["data"][0]["id"]
        for queries, documents in ((QUESTIONS[0], ANSWERS[0]), (QUESTIONS[0], ANSWERS), (QUESTIONS, ANSWERS)):
            body = {"model": model, "queries": queries, "documents": documents}
            answer = client.post("/score", json=body).raise_for_status().json()
            print(f"Queries: {queries!r}\nDocuments: {documents!r}")
            print("Scores: [" + ", ".join(f"{item['score']:.4f}" for item in answer["data"]) + "]\n" + "-" * 60)


if __name__ == "__main__":
    main()
