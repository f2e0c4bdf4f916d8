"""Scores pairs of texts: with a cross-encoder, or by the cosine of an embedding model's vectors."""

from argparse import ArgumentParser

from jaxpool import LLM

QUESTION = "What is the capital of France?"
TEXTS = (
    "The capital of Brazil is Brasilia.",
    "The capital of France is Paris.",
    "Hello, my name is nobody.",
)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="BAAI/bge-reranker-v2-m3", help="or all-MiniLM-L6-v2: the cosine")
    args = parser.parse_args()

    with LLM(args.model, task="score") as llm:
        outputs = llm.score(QUESTION, list(TEXTS))  # one with many; one with one and many with many work too
        kind = "cosine" if llm.recipe.embeds else "cross-encoder"

    print(f"\nGenerated outputs ({kind}):\n" + "-" * 60)
    for text, output in zip(TEXTS, outputs, strict=True):
        print(f"Pair: {[QUESTION, text]!r}\nScore: {output.outputs.score:.4f}\n" + "-" * 60)


if __name__ == "__main__":
    main()
