"""The loss curve and the experts' load of a run, as small PNG pictures."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def smoothed(values, share=0.8):
    out, average = [], None
    for value in values:
        average = value if average is None else share * average + (1 - share) * value
        out.append(average)
    return out


def draw_loss(rows, path):
    steps = [r for r in rows if "loss" in r]
    heldout = [r for r in rows if "heldout_bits_per_byte" in r]
    figure, left = plt.subplots(figsize=(6, 3.4), dpi=80)
    x = [r["tokens"] / 1e6 for r in steps]
    left.plot(x, [r["loss"] for r in steps], color="#b8cbe0", linewidth=0.8)
    left.plot(x, smoothed([r["loss"] for r in steps]), color="#1f4e86", label="training loss (nats a token, left)")
    left.set_xlabel("million tokens")
    left.set_ylim(top=min(7.0, max(r["loss"] for r in steps)))
    right = left.twinx()
    right.plot([r["tokens"] / 1e6 for r in heldout], [r["heldout_bits_per_byte"] for r in heldout], "o-",
               color="#c0562b", markersize=3, label="held-out text (bits a byte, right)")
    lines = left.get_lines()[1:] + right.get_lines()
    left.legend(lines, [line.get_label() for line in lines], frameon=False, loc="upper right")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def draw_load(rows, path):
    """Each MoE layer's share of tokens per expert, averaged over the last logged steps."""
    last = [r["load"] for r in rows if "load" in r][-20:]
    layers, count = len(last[0]), len(last[0][0])
    figure, axes = plt.subplots(layers, 1, figsize=(6, 1.2 * layers + 0.8), dpi=80, sharex=True)
    for index, axis in enumerate(axes):
        share = [100 * sum(load[index][e] for load in last) / len(last) for e in range(count)]
        axis.bar(range(count), share, color="#1f4e86")
        axis.axhline(100 / count, color="#c0562b", linewidth=0.8)
        axis.set_ylabel(f"MoE {index + 1}, %")
    axes[-1].set_xlabel("expert")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def draw(rows, folder):
    draw_loss(rows, folder / "loss.png")
    draw_load(rows, folder / "experts.png")
