"""The rule engine: checkpoint keys -> the leaves of a Flax param tree, and back.

A family writes a table of `Rule`s. Every key of a checkpoint must match exactly one of them, or one for each part of
its tensor, and every declared leaf must be filled exactly once; all that does not fit is collected and raised as one
error. A transform works on a slice as well as on the whole and can be inverted, so one table drives loading, loading by
shards, and export.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from jaxpool.converters.transforms import UNCHANGED, WHOLE, CheckpointError, Fetch, Index, Part, TokenRows, Transform
from jaxpool.params import ParamSpec, Tree, flatten


@dataclass(frozen=True)
class Rule:
    """One line of a family's table.

    Attributes:
        source: the checkpoint's key; "{layer}" stands for the layer's number and, in skips, "*" for anything.
        target: the leaf's path ("layers/attention/query/kernel"; without the number, layers are stacked), or
            None for a tensor that is known and left out.
        transform: see `Transform`.
        optional: the target may be absent from the declaration; then the tensor is left out.
        shared: the tensor fills another leaf too (an embedding table that is also the head).
        first: the number of the layer that is stacked first; earlier ones have rules of their own.
        part: which part of the tensor the leaf is; rules of the same key take the others.
    """

    source: str
    target: str | None
    transform: Transform | TokenRows = UNCHANGED
    optional: bool = False
    shared: bool = False
    first: int = 0
    part: Part = WHOLE

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """`source` as a regular expression."""
        escaped = re.escape(self.source).replace(r"\{layer\}", r"(?P<layer>\d+)").replace(r"\*", ".*")
        return re.compile(escaped)

    def below(self, path: str) -> Rule:
        """The same rule with `path` in front of its target."""
        return self if self.target is None else replace(self, target=f"{path}/{self.target}")

    def match(self, key: str) -> re.Match[str] | None:
        """Whether this rule answers for a (canonical) key."""
        match = self.pattern.fullmatch(key)
        early = match is not None and "layer" in match.re.groupindex and int(match["layer"]) < self.first
        return None if early else match

    def key(self, place: int | None) -> str:
        """The checkpoint's key for a place in the stack."""
        return self.source.format(layer=place if place is None else place + self.first)

    def source_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of the checkpoint's tensor for a leaf (or one layer of it) of `shape`."""
        own = self.transform.source_shape(shape)
        return own if self.part == WHOLE else (self.part.of * own[0], *own[1:])

    def read(self, fetch: Fetch, shape: Sequence[int], index: Index | None = None) -> np.ndarray:
        """The leaf (or one layer of it), or the part of it under `index`. Arguments as `Transform.read`."""
        if self.part != WHOLE:
            fetch = self.part.within(fetch, self.transform.source_shape(shape)[0])
        return self.transform.read(fetch, shape, index)


def skip(source: str) -> Rule:
    """A tensor that is known and left out, unless another rule takes it."""
    return Rule(source, None)


def inside(path: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The rules of a model within the model."""
    return tuple(replace(rule, source=f"{path}.{rule.source}") for rule in rules)


def linear(
    source: str,
    target: str,
    kernel: str = "f d -> d f",
    bias: str = "",
    *,
    optional: bool = False,
    part: Part = WHOLE,
) -> list[Rule]:
    """The two rules of a torch Linear: `weight` [out, in] -> `kernel` [in, …out], `bias` -> `bias`."""
    return [
        Rule(f"{source}.weight", f"{target}/kernel", Transform(kernel), optional, part=part),
        Rule(f"{source}.bias", f"{target}/bias", Transform(bias), optional, part=part),
    ]


def parts(names: Sequence[str]) -> list[tuple[str, Part]]:
    """The leaves that lie in one tensor, first to last, with their places there."""
    return [(name, Part(number, len(names))) for number, name in enumerate(names)]


def fused(source: str, target: str, names: Sequence[str], kernel: str = "f d -> d f", bias: str = "") -> list[Rule]:
    """The rules of one torch Linear that is several, whose outputs lie one behind the other; see `linear`."""
    return [rule for name, part in parts(names) for rule in linear(source, f"{target}/{name}", kernel, bias, part=part)]


def layer_norm(source: str, target: str) -> list[Rule]:
    """The two rules of a torch LayerNorm."""
    return [Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")]


@dataclass(frozen=True)
class Table:
    """A family's rules.

    Attributes:
        rules: the lines.
        prefixes: what may stand before every key (a model saved inside a bigger one: "bert.").
        renames: (suffix, today's suffix) of older spellings.
        heads: by name, the rules of heads that lie beside the backbone; their targets begin with the module's place
            in the head's chain ("0/linear/kernel").
        logits: the keys of a language model's head: of its own, and of the embedding table that it may be tied to.
    """

    rules: tuple[Rule, ...]
    prefixes: tuple[str, ...] = ()
    renames: tuple[tuple[str, str], ...] = ()
    heads: Mapping[str, tuple[Rule, ...]] = field(default_factory=dict)
    logits: tuple[str, str] | None = None

    def below(self, path: str) -> Table:
        """The same rules with `path` in front of every target; the heads are left out."""
        return Table(tuple(rule.below(path) for rule in self.rules), self.prefixes, self.renames)

    def whole(self, backbone: str, head_path: str, head: Sequence[Rule] = ()) -> Table:
        """The rules of a checkpoint that holds a backbone and perhaps a head.

        Args:
            backbone, head_path: where the two lie in the tree.
            head: the rules of the head that is wanted (`heads`' or others). The keys of other heads are passed over.
        """
        wanted = {rule.source for rule in head}
        others = {rule.source for rules in self.heads.values() for rule in rules} - wanted
        # What the backbone may keep for its own sake (BERT's pooler) goes to the head that asks for it.
        kept = [rule for rule in self.rules if not (rule.optional and rule.source in wanted)]
        others -= {rule.source for rule in kept}
        return Table(
            rules=(
                *(rule.below(backbone) for rule in kept),
                *(rule.below(head_path) for rule in head),
                *(skip(source) for source in sorted(others)),
            ),
            prefixes=self.prefixes,
            renames=self.renames,
        )

    def canonical(self, key: str) -> str:
        """The key without prefix, in today's spelling."""
        for prefix in self.prefixes:
            key = key.removeprefix(prefix)
        for old, new in self.renames:
            if key.endswith(old):
                key = key.removesuffix(old) + new
        return key


def identity_table(specs: Tree) -> Table:
    """The table that reads a converted checkpoint, whose keys are the leaves' own paths."""
    return Table(tuple(Rule(path, path, optional=True) for path in flatten(specs)))


@dataclass(frozen=True)
class Leaf:
    """Where one declared leaf comes from.

    Attributes:
        path: its name.
        spec: its declaration.
        keys: the checkpoint's keys: one, or one a layer for a stacked leaf.
        rule: from key to leaf (or to one layer of it).
        stacked: whether `keys` run over the leading axis.
    """

    path: str
    spec: ParamSpec
    keys: tuple[str, ...]
    rule: Rule
    stacked: bool

    def read(
        self, fetch: Callable[[str, Index], np.ndarray], index: Index | None = None, *, exact: bool = False
    ) -> np.ndarray:
        """The leaf, or its part under `index`, read with `fetch(key, index)`.

        Raises:
            CheckpointError: `exact`, and the layers are stored in several dtypes, so that stacking changes one.
        """
        if not self.stacked:
            return self.rule.read(partial(fetch, self.keys[0]), self.spec.shape, index)
        layers, rest = (index[0], index[1:]) if index else (slice(None), None)
        shape = self.spec.shape[1:]
        stack = [self.rule.read(partial(fetch, key), shape, rest) for key in self.keys[layers]]
        if exact and len({layer.dtype for layer in stack}) > 1:
            dtypes = ", ".join(f"{key!r} {layer.dtype}" for key, layer in zip(self.keys[layers], stack, strict=True))
            raise CheckpointError(f"{self.path!r} stacks layers that are stored in several dtypes: {dtypes}")
        return np.stack(stack)


Binding = dict[str, Leaf]
"""Every declared leaf's path -> where it comes from."""


def bind(
    shapes: Mapping[str, Sequence[int]], table: Table, specs: Tree, extras: Mapping[str, ParamSpec] | None = None
) -> Binding:
    """Matches a checkpoint's keys with the declared leaves, by names and shapes alone.

    Args:
        shapes: the checkpoint's keys with their shapes.
        table: the family's rules.
        specs: the declared leaves.
        extras: flat leaves that are taken too if the checkpoint has them.

    Raises:
        CheckpointError: keys that are missing, unexpected, doubled or of the wrong shape, all in one message.
    """
    declared: dict[str, ParamSpec] = flatten(specs) | dict(extras or {})
    found: dict[tuple[str, int | None], tuple[str, Rule]] = {}
    problems: list[str] = []
    for key, shape in shapes.items():
        for rule, match in _answering(key, table, problems):
            if rule.optional and rule.target not in declared:
                continue
            if rule.target is None or rule.target not in declared:
                problems.append(f"{key!r} belongs to {rule.target!r}, which this model does not declare")
                continue
            layer = int(match["layer"]) - rule.first if "layer" in match.re.groupindex else None
            place = (rule.target, layer)
            if place in found:
                problems.append(f"doubled: {found[place][0]!r} and {key!r} both fill {rule.target!r}")
                continue
            found[place] = (key, rule)
            problems += _misfit(key, shape, rule, layer, declared[rule.target])
    for path in extras or ():
        if not any(target == path for target, _ in found):
            del declared[path]
    binding: Binding = {}
    for path, spec, rules in _expected(declared, table):
        if not rules:
            problems.append(f"no rule fills {path!r}")
            continue
        stacked = "{layer}" in rules[0].source
        layers: Iterable[int | None] = range(spec.shape[0]) if stacked else (None,)
        missing = [layer for layer in layers if (path, layer) not in found]
        problems += [f"missing key {rules[0].key(layer)!r} (for {path!r})" for layer in missing]
        if not missing:
            places = [found[path, layer] for layer in layers]
            binding[path] = Leaf(path, spec, tuple(key for key, _ in places), places[0][1], stacked)
    if problems:
        each = sorted(set(problems))  # a tensor's shape is wrong for each of its parts
        raise CheckpointError(f"the checkpoint does not fit the model ({len(each)} problems):\n  " + "\n  ".join(each))
    return binding


def _answering(key: str, table: Table, problems: list[str]) -> list[tuple[Rule, re.Match[str]]]:
    """The rule that takes a key's tensor, and those that share it; none where it is passed over."""
    today = table.canonical(key)
    matches = [(rule, match) for rule in table.rules if (match := rule.match(today))]
    takers = [(rule, match) for rule, match in matches if rule.target is not None]
    owners = [rule for rule, _ in takers if not rule.shared]
    if not matches:
        problems.append(f"unexpected key {key!r}")
    if sorted(rule.part for rule in owners) != [Part(number, len(owners)) for number in range(len(owners))]:
        targets = ", ".join(str(rule.target) for rule in owners)
        problems.append(f"{key!r} is not taken once and whole by its rules: {targets}")
        return []
    return takers


def _misfit(key: str, shape: Sequence[int], rule: Rule, layer: int | None, spec: ParamSpec) -> Iterator[str]:
    if layer is not None and layer >= spec.shape[0]:
        yield f"unexpected key {key!r}: the config has {spec.shape[0]} layers"
        return
    expected = rule.source_shape(spec.shape if layer is None else spec.shape[1:])
    if tuple(shape) != expected:
        yield f"{key!r} has shape {list(shape)}, expected {list(expected)}"


def _expected(declared: Mapping[str, ParamSpec], table: Table) -> Iterator[tuple[str, ParamSpec, list[Rule]]]:
    by_target: dict[str, list[Rule]] = defaultdict(list)
    for rule in table.rules:
        if rule.target is not None:
            by_target[rule.target].append(rule)
    for path, spec in declared.items():
        yield path, spec, by_target[path]


def to_checkpoint(params: Mapping[str, Any], table: Table) -> Iterator[tuple[str, np.ndarray]]:
    """Flat leaves -> (PyTorch key, tensor), one at a time: the table read backwards.

    Raises:
        CheckpointError: a leaf that cannot be written back, or one whose tensor has parts that are not there.
    """
    rules = {rule.target: rule for rule in reversed(table.rules) if rule.target is not None}
    found: dict[str, dict[Part, tuple[Rule, Any]]] = defaultdict(dict)
    for path, leaf in params.items():
        rule = rules[path]
        if rule.shared:
            continue  # its tensor is written under its owner's name
        found[rule.source][rule.part] = rule, leaf
        if len(found[rule.source]) == rule.part.of:
            yield from _joined([own for _, own in sorted(found.pop(rule.source).items())])
    if found:
        raise CheckpointError(f"parts are missing of {', '.join(sorted(found))}")


def _joined(leaves: Sequence[tuple[Rule, Any]]) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors, one a layer, whose parts these leaves are."""
    rule, first = leaves[0]
    for layer in range(first.shape[0]) if "{layer}" in rule.source else (None,):
        blocks = [own.transform.invert(np.asarray(leaf if layer is None else leaf[layer])) for own, leaf in leaves]
        yield rule.key(layer), blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
