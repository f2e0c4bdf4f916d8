"""Asks a reward model for the reward of every token; of the whole answer, the last token's counts."""

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
    parser.add_argument("--model", default="internlm/internlm2-1_8b-reward")
    args = parser.parse_args()

    with LLM(args.model, task="reward") as llm:
        outputs = llm.reward(list(PROMPTS))

    print("\nGenerated outputs:\n" + "-" * 60)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        rewards = output.outputs.data  # [tokens, 1]
        numbers = ", ".join(f"{x:.4f}" for x in rewards[:, 0])
        print(f"Prompt: {prompt!r}\nRewards: [{numbers}] (size={len(rewards)})")
        print(f"Last token: {rewards[-1, 0]:.4f}\n" + "-" * 60)


if __name__ == "__main__":
    main()
