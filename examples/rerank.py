"""Reranks documents with a language model that is told what to judge by, or with any other cross-encoder."""

from argparse import ArgumentParser

from jaxpool import LLM

INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
QUERY = "What is the capital of China?"
DOCUMENTS = (
    "Gravity is a force that attracts two bodies towards each other.",
    "The capital of China is Beijing.",
    "China has the second largest population of all countries.",
)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="Qwen/Qwen3-Reranker-0.6B")
    parser.add_argument("--instruction", default=INSTRUCTION)
    args = parser.parse_args()

    with LLM(args.model, task="score") as llm:
        # Its prompt is chosen by the model's name; a cross-encoder has none, and so takes no instruction.
        instruction = args.instruction if llm.recipe.template else None
        ranking = llm.rerank(QUERY, DOCUMENTS, instruction=instruction, return_documents=True)

    print(f"\nQuery: {QUERY!r}\nInstruction: {instruction!r}\n" + "-" * 60)
    for place, (index, score, document) in enumerate(ranking, 1):
        print(f"{place}. {score:.4f}  [{index}] {document}\n" + "-" * 60)


if __name__ == "__main__":
    main()
