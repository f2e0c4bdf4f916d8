"""Asks a process reward model how right each step of an answer is (STEP pooling)."""

from argparse import ArgumentParser

from transformers import AutoTokenizer

from jaxpool import LLM, PoolerConfig

SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
QUESTION = "Sue has 18 flamingos. On Friday six are painted white, on Sunday six more. How many are still pink?"
STEPS = (
    "On Friday 6 of the 18 flamingos are painted white, which leaves 12 pink ones.",
    "On Sunday 6 more are painted white, which leaves 12 - 6 = 6 pink ones.",
    "So 20 flamingos are still pink: \\boxed{20}.",
)


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="Qwen/Qwen2.5-Math-PRM-7B")
    parser.add_argument("--tag", default="<extra_0>", help="the token that ends a step")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    conversation = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": args.tag.join(STEPS) + args.tag},
    ]
    prompt = tokenizer.apply_chat_template(conversation, tokenize=False)
    pooler = PoolerConfig(pooling_type="STEP", step_tag_id=tokenizer.convert_tokens_to_ids(args.tag))

    with LLM(args.model, task="reward", pooler_config=pooler) as llm:
        (output,) = llm.reward(prompt)

    print(f"\nQuestion: {QUESTION}\n" + "-" * 60)
    for step, probs in zip(STEPS, output.outputs.data, strict=True):  # [steps, 2]: wrong, right
        print(f"Step: {step}\nRight: {probs[-1]:.4f}\n" + "-" * 60)


if __name__ == "__main__":
    main()
