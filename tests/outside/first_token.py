"""A task written outside the repository: say, at the last position, which token came first."""

import numpy as np
import torch
from torch import nn

from attention_zoo.contract import Pattern
from tasks.contract import Artifact, Metric, Recipe, Scores, Task, TaskCard

VOCABULARY, LENGTH, WIDTH = 8, 12, 16


class Model(nn.Module):
    def __init__(self, slots, pattern):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.attention = slots[pattern](WIDTH, 2, max_length=LENGTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.positions
        return self.head((x + self.attention(x))[:, -1])


class FirstToken(Task):
    card = TaskCard(
        name="first_token",
        title="The first token",
        patterns=(Pattern.NONCAUSAL_SELF, Pattern.CAUSAL_SELF),
        primary_pattern=Pattern.CAUSAL_SELF,
        metrics=(Metric("accuracy", "1", True, "share of sequences whose first token is named"),),
        lengths={"tiny": (LENGTH, None)},
        unit="sequence",
        floors={"uniform": "1 / vocabulary"},
        floor="uniform",
        source="generated",
        licence="none",
        citation="none",
    )
    recipe = Recipe(max_steps=30, learning_rate=1e-2, warmup_steps=3)

    def __init__(self, *, size: str = "tiny", pattern: Pattern, batch_size: int = 8):
        self.size, self.pattern, self.batch_size = size, Pattern(pattern), batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is not a positive number")

    def build_model(self, slots):
        return Model(slots, self.pattern)

    def _batch(self, seed, index):
        generator = torch.Generator().manual_seed(1000 * seed + index)
        return {"tokens": torch.randint(VOCABULARY, (self.batch_size, LENGTH), generator=generator)}

    def batches(self, split, seed, start=0):
        index = start if split == "train" else 10**6
        last = None if split == "train" else index + 8
        while last is None or index < last:
            yield self._batch(seed, index)
            index += 1

    def tokens(self, batch):
        return batch["tokens"].numel()

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch["tokens"]), batch["tokens"][:, 0])

    def evaluate(self, model, split):
        right = [(model(b["tokens"]).argmax(-1) == b["tokens"][:, 0]).numpy() for b in self.batches(split, 0)]
        values = np.concatenate(right).astype(float)
        return Scores([str(i) for i in range(len(values))], {"accuracy": values})

    def floors(self, split):
        count = 8 * self.batch_size
        return {"uniform": Scores([str(i) for i in range(count)], {"accuracy": np.full(count, 1 / VOCABULARY)})}

    def samples(self, model):
        tokens = self._batch(0, 10**6)["tokens"]
        return [Artifact("guess.txt", "text/plain", f"{tokens[0].tolist()}: {int(model(tokens)[0].argmax())}".encode())]
