"""How to read a report: what each column, mark and word means, in plain words."""

from __future__ import annotations

from cab.report.book import Book
from cab.report.certificates import MARKS


def how_to_read(book: Book) -> list[tuple[str, str]]:
    """Terms and their meaning, in the order in which a reader meets them."""
    base = book.baseline
    marks = "; ".join(f"{text}: {meaning}" for text, meaning in MARKS.values())
    return [
        (
            "Pattern under test",
            "the mechanism is in the attention slots of one pattern; all other slots have exact attention. "
            "Rows of different protocols, hardware, devices, dtypes, thread counts or sizes never share a table.",
        ),
        (
            "± and intervals",
            f"value ± half of a 95 % interval. Quality: {book.interval_over}; with three or more seeds the interval is "
            "over seeds. An interval over test examples says how far the test set tells models apart, not how much "
            "training varies from seed to seed. Cost: over processes. Below three units there is none.",
        ),
        (
            f"Gain over {base}",
            f"positive is better than {base}: log(baseline / value) for perplexities and errors, value minus baseline "
            "for scores, from differences paired by test example (or by seed); the mean is over the pattern's tasks. "
            "It mixes units, so it orders the table and is not a score. A mean needs every task.",
        ),
        (
            "p (Holm)",
            f"how often a mean gain at least as far from zero would be seen without a difference to {base}, corrected "
            "for the number of settings in the table (Holm's method). Below 0.05 of a table, the chance of one false "
            "alarm among all its settings is under 5 %. It is of these test examples and seeds; read the gain first.",
        ),
        (
            "Rank",
            "by mean gain. Entries whose intervals overlap that of the first of their group share its rank (=): these "
            "data do not tell them apart. Overlap is the cautious rule: it ties more than a paired test would.",
        ),
        (
            f"Quality not told apart from {base}",
            f"in every task of the pattern the interval of the gain over {base} reaches zero. A small test set tells "
            "little apart: read it beside the widths.",
        ),
        (
            f"Time and memory ÷ {base}",
            f"below 1 is less than {base}. Times are ratios of neighbouring calls in one process, geometric mean over "
            "processes; memory is the peak beyond the inputs.",
        ),
        (
            "Faster from",
            f"the length where the measured time ratio to {base} crosses 1, with its interval. `from L or less` and "
            "`never up to L`: it does not cross within the measured lengths; `several`: the advantage comes and goes.",
        ),
        ("Certificate", f"{marks}. Without a certificate for a pattern there is no row in it."),
        (
            "sees the future",
            "a value-causal mechanism: its speed is shown, its quality is not, as it could look at what it predicts.",
        ),
        (
            "floor",
            "a trivial predictor on the same test examples. ▽ marks a value whose interval is not wholly better than "
            "the task's floor: nothing shows that the model knows more than the trivial predictor.",
        ),
        (
            "Gaps",
            "every gap has its reason under the table: unsupported, over budget, timeout, out of memory, diverged, "
            "failed certificate, error; `pending` is planned and has no record yet; `not measured` is neither.",
        ),
    ]
