"""Classifies a few prompts and prints the classes' probabilities."""

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
    parser.add_argument("--model", default="jason9693/Qwen2.5-1.5B-apeach")
    args = parser.parse_args()

    with LLM(args.model, task="classify") as llm:
        outputs = llm.classify(list(PROMPTS))
        names = llm.recipe.hf.get("id2label") or {}  # of the classes, as config.json calls them

    print("\nGenerated outputs:\n" + "-" * 60)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        probs = output.outputs.probs
        best = max(range(len(probs)), key=lambda i: probs[i])
        numbers = ", ".join(f"{p:.4f}" for p in probs)
        print(f"Prompt: {prompt!r}\nClass probabilities: [{numbers}] (size={len(probs)})")
        print(f"Class: {names.get(str(best), best)}\n" + "-" * 60)


if __name__ == "__main__":
    main()
