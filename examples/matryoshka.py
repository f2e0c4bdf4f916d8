"""Matryoshka embeddings: the first entries of a vector are a smaller vector of the same text."""

from argparse import ArgumentParser

from jaxpool import LLM, PoolingParams

TEXTS = (
    "Follow the white rabbit.",
    "Go after the white bunny.",
    "Run from the black dog.",
    "The weather is lovely today.",
)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="Snowflake/snowflake-arctic-embed-m-v1.5")
    parser.add_argument("--dimensions", type=int, default=256)
    args = parser.parse_args()

    # Most models' files do not say that their vectors may be cut; whoever knows it says it here.
    with LLM(args.model, task="embed", hf_overrides={"is_matryoshka": True}) as llm:
        # One request each: whole, and cut before it is normalised. Mixed ones share batches.
        whole, cut = PoolingParams(), PoolingParams(dimensions=args.dimensions)
        outputs = llm.embed([*TEXTS, *TEXTS], pooling_params=[whole] * len(TEXTS) + [cut] * len(TEXTS))
        vectors = [output.outputs.embedding for output in outputs]
        for part in (vectors[: len(TEXTS)], vectors[len(TEXTS) :]):
            print(f"\nCosines with the first text, {len(part[0])} dimensions:\n" + "-" * 60)
            for text, similarity in zip(TEXTS, llm.similarity(part[:1], part)[0], strict=True):
                print(f"{similarity:.4f}  {text}\n" + "-" * 60)


if __name__ == "__main__":
    main()
