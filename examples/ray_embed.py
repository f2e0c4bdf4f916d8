"""Embeds the texts of parquet files on a Ray cluster, and writes parquet files with the vectors beside them."""

from argparse import ArgumentParser

import ray

from jaxpool.integrations.ray import embed_dataset


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("input", help="a parquet file, a directory of them, or a URL (s3://, gs://)")
    parser.add_argument("output", help="a directory or a URL")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--column", default="text", help="where the texts are")
    parser.add_argument("--concurrency", type=int, default=1, help="actors at most; each is one CPU, or else …")
    parser.add_argument("--gpus", type=float, help="… so many GPUs")
    parser.add_argument("--tpus", type=float, help="… or so many TPU chips: all those of a host")
    args = parser.parse_args()

    needs = {"num_gpus": args.gpus, "resources": args.tpus and {"TPU": args.tpus}}
    needs = {name: value for name, value in needs.items() if value}
    texts = ray.data.read_parquet(args.input)
    vectors = embed_dataset(texts, args.model, column=args.column, concurrency=(1, args.concurrency), **needs)
    vectors.write_parquet(args.output)


if __name__ == "__main__":
    main()
