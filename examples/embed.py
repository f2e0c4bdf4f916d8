"""Embeds a few prompts and prints the beginning of each vector."""

from argparse import ArgumentParser

from jaxpool import LLM

PROMPTS = (
    "Hello, my name is",
    "The president of the United States is",
    "The capital of France is",
    "The future of AI is",
)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--prompt", default="", help="put in front of each text, as e5-mistral-7b-instruct wants it")
    args = parser.parse_args()
    prompts = [args.prompt + prompt for prompt in PROMPTS]

    with LLM(args.model, task="embed") as llm:
        outputs = llm.embed(prompts)

    print("\nGenerated outputs:\n" + "-" * 60)
    for prompt, output in zip(prompts, outputs, strict=True):
        embedding = output.outputs.embedding
        beginning = ", ".join(f"{x:.4f}" for x in embedding[:8])
        print(f"Prompt: {prompt!r}\nEmbedding: [{beginning}, …] (size={len(embedding)})\n" + "-" * 60)


if __name__ == "__main__":
    main()
