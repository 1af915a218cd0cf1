"""Plots for reports, drawn by matplotlib as SVG that stands in an HTML page and follows its colours."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..extras import need_extra
from .labels import GAP, Box, placed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#010203"
"""Drawn in this colour, replaced by that of the page's text: light or dark."""
COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#eab308", "#14b8a6", "#ec4899", "#64748b", "#84cc16")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*", "p", "h")


def need_matplotlib() -> None:
    """Raises NPTError if it is not installed; called before anything is measured."""
    need_extra("report", "matplotlib", reason="a report has plots and")


def quality_against_seconds(
    quality: Mapping[str, Sequence[float]], seconds: Mapping[str, Sequence[float]], name: str, ceiling: float | None
) -> str:
    """One point per method with its interval; a line for what takes no time; the ceiling dotted."""
    figure, axes = _figure(7, 4)
    for i, (method, (mean, low, high)) in enumerate(quality.items()):
        colour = COLOURS[i % len(COLOURS)]
        if method in seconds:
            x, left, right = seconds[method]
            spread = [[mean - low], [high - mean]], [[x - left], [right - x]]
            axes.errorbar(x, mean, *spread, fmt=MARKS[i % len(MARKS)], color=colour, capsize=3, label=method)
        else:
            axes.axhspan(low, high, color=colour, alpha=0.12, linewidth=0)
            axes.axhline(mean, color=colour, linestyle="--", label=f"{method} (no edit)")
    if ceiling is not None:
        axes.axhline(ceiling, color=INK, linestyle=":", label="ceiling")
    if seconds:
        _logarithmic(axes)
        taken = [x for interval in seconds.values() for x in interval]
        axes.set_xlim(min(taken) / 2, max(taken) * 2)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("seconds per edit")
    axes.set_ylabel(name)
    return _svg(figure, "quality")


def success_against_locality(
    at: Mapping[str, tuple[float, float]], seconds: Mapping[str, float], success: str, locality: str, salt: str
) -> str:
    """A named mark per method at (locality, success), shares both, the larger the more seconds it takes. `success` and
    `locality` name the axes; `salt` keeps the plot's ids apart from those of others of its kind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.lines import Line2D

    figure, axes = _figure(7.5, 5)
    canvas = FigureCanvasAgg(figure)
    axes.set_xlim(-0.04, 1.04)
    axes.set_ylim(-0.04, 1.04)
    axes.set_xlabel(locality)
    axes.set_ylabel(success)
    heights = []
    for S in (0.2, 0.4, 0.6, 0.8):  # 3 / S = 2 / success + 1 / locality
        xs = [x / 200 for x in range(1, 201) if 3 / S - 200 / x > 2]
        ys = [2 / (3 / S - 1 / x) for x in xs]
        axes.plot(xs, ys, color="#888888", alpha=0.5, linewidth=0.7, zorder=1)
        grey = {"color": "#888888", "fontsize": 8, "va": "top", "in_layout": False}
        heights.append(axes.text(xs[0] + 0.01, ys[0], f"S {S}", **grey))
    radii = {m: _radius(s) for m, s in seconds.items()}
    for i, (method, (x, y)) in enumerate(at.items()):  # a small mark is not covered by a large one
        style = {"marker": MARKS[i % len(MARKS)], "color": COLOURS[i % len(COLOURS)], "alpha": 0.8}
        size = 2 * radii[method]
        axes.plot([x], [y], markersize=size, markeredgewidth=0, zorder=3 + 1 / size, **style)
    keys = [
        Line2D([], [], marker="o", linestyle="", markersize=2 * _radius(s), color="#888888", markeredgewidth=0)
        for s in (0.0, 1.0, 10.0)
    ]
    place = {"loc": "outside right upper", "frameon": False, "labelcolor": INK, "fontsize": 9}
    legend = figure.legend(keys, ["no time", "1 s", "10 s"], title="teaching", labelspacing=0.8, **place)
    legend.get_title().set_color(INK)
    canvas.draw()
    in_pixels: dict[str, tuple[float, float]] = {}
    for method, point in at.items():
        x, y = axes.transData.transform(point)
        in_pixels[method] = float(x), float(y)
    shared: dict[tuple[int, int], list[str]] = {}
    for method, (x, y) in in_pixels.items():  # marks in one place share a name
        shared.setdefault((round(x / 4), round(y / 4)), []).append(method)
    groups = list(shared.values())
    names = [axes.text(0, 0, _in_lines(g), fontsize=9.5, color=INK, va="bottom", in_layout=False) for g in groups]
    scale, renderer = figure.dpi / 72, canvas.get_renderer()
    extents = [n.get_window_extent(renderer) for n in names]
    # the browser's letters may be wider than those that are measured here
    sizes = [(1.15 * e.width, e.height) for e in extents]
    marks = {m: Box.around(*in_pixels[m], radii[m] * scale) for m in at}
    taken = [*marks.values(), *(Box(*h.get_window_extent(renderer).extents) for h in heights)]
    frame = Box(*axes.get_window_extent().extents)
    of_groups = [max((marks[m] for m in g), key=lambda mark: mark.right - mark.left) for g in groups]
    to_data = axes.transData.inverted()
    for name, box, mark in zip(names, placed(of_groups, sizes, taken, frame), of_groups, strict=True):
        name.set_position(to_data.transform((box.left, box.bottom)))
        ends, point = box.nearest(*mark.middle), mark.middle
        if math.dist(ends, point) > (mark.right - mark.left) / 2 + 2 * GAP:  # a line leads to a mark that is far
            line = zip(*to_data.transform([point, ends]), strict=True)
            axes.plot(*line, color=INK, alpha=0.4, linewidth=0.6, zorder=2)
    return _svg(figure, f"success {salt}")


def _in_lines(names: Sequence[str]) -> str:
    """Three names a line."""
    return ",\n".join(", ".join(names[i : i + 3]) for i in range(0, len(names), 3))


def _radius(seconds: float) -> float:
    """Of a mark, in points: its area grows with the logarithm of the time."""
    return math.sqrt(14 + 40 * math.log10(1 + 10 * seconds))


def retention(steps: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """Each figure of `names`, and the rise of perplexity, over the number of edits in place; a line per method."""
    figure, *axes = _figure(3.2 * (len(names) + 1), 3.4, len(names) + 1)
    for i, method in enumerate(dict.fromkeys(s["method"] for s in steps)):
        own = [s for s in steps if s["method"] == method]
        edits, style = [s["edits"] for s in own], {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]}
        for name, ax in zip(names, axes, strict=False):
            mean, low, high = zip(*(s["figures"][name] for s in own), strict=True)
            ax.fill_between(edits, low, high, color=style["color"], alpha=0.15, linewidth=0)
            ax.plot(edits, mean, label=method, markersize=4, **style)
        axes[-1].plot(edits, [100 * s["perplexity"] for s in own], label=method, markersize=4, **style)
    for name, ax in zip((*names, "rise of perplexity, %"), axes, strict=True):
        _logarithmic(ax, sorted({s["edits"] for s in steps}))
        ax.set_xlabel("edits in place")
        ax.set_title(name, fontsize=10, color=INK)
    for ax in axes[:-1]:
        ax.set_ylim(-0.03, 1.03)
    return _svg(figure, "retention")


def heat_map(norms: Sequence[Sequence[float]], layers: Sequence[int], tokens: Sequence[str], label: str) -> str:
    """A row per layer, a column per token, on a logarithmic scale of colours."""
    from matplotlib.colors import LogNorm

    figure, axes = _figure(max(5.0, 0.42 * len(tokens) + 2), max(2.4, 0.17 * len(layers) + 1.4))
    positive = [v for row in norms for v in row if v > 0]
    scale = LogNorm(min(positive), max(positive) * 1.001) if positive else None
    drawn = axes.imshow(norms, aspect="auto", norm=scale, cmap="viridis", origin="lower", interpolation="nearest")
    axes.set_xticks(range(len(tokens)), tokens, rotation=45, ha="right", parse_math=False)
    every = max(1, len(layers) // 12)
    axes.set_yticks(range(0, len(layers), every), [str(i) for i in layers[::every]])
    axes.set_ylabel("layer")
    axes.grid(False)
    bar = figure.colorbar(drawn, ax=axes, label=label)
    bar.ax.yaxis.label.set_color(INK)
    bar.ax.tick_params(which="both", colors=INK)
    return _svg(figure, "heat")


def lines(series: Mapping[str, Sequence[float]], at: Sequence[str], label: str, name: str) -> str:
    """A line per entry of `series` over the places `at`, on a logarithmic scale if every value allows it."""
    figure, axes = _figure(7, 3.4)
    for i, (title, values) in enumerate(series.items()):
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]}
        axes.plot(range(len(at)), values, label=title, markersize=4, **style)
    every = max(1, len(at) // 12)
    axes.set_xticks(range(0, len(at), every), at[::every])
    if all(v > 0 for values in series.values() for v in values):
        axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel(name)
    return _svg(figure, f"lines {label} {name}")


def curves(series: Mapping[str, Sequence[float]], at: Sequence[int], label: str, name: str) -> str:
    """A line without marks per entry of `series` over the numbers `at`, without what is NaN; logarithmic if every
    value allows it."""
    figure, axes = _figure(9, 3.4)
    for i, (title, values) in enumerate(series.items()):
        known = [(x, y) for x, y in zip(at, values, strict=True) if not math.isnan(y)]
        label_ = title if len(series) <= 16 else None
        axes.plot(*zip(*known, strict=True), label=label_, linewidth=1, color=COLOURS[i % len(COLOURS)])
    if not any(v <= 0 for values in series.values() for v in values):
        axes.set_yscale("log")
    axes.set_xlabel(label)
    return _svg(figure, f"curves {label} {name}")


def _logarithmic(axes: Axes, at: Sequence[float] | None = None) -> None:
    """Seconds and counts from left to right, with plain numbers; marked where `at` says, else at 1, 2, 5, 10, ..."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)) if at is None else FixedLocator(at))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _figure(width: float, height: float, columns: int = 1) -> Any:
    """A figure and its axes, transparent, all lines and words in INK."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
    for ax in axes:
        ax.patch.set_alpha(0)
        ax.grid(color="#888888", alpha=0.25, linewidth=0.6)
        ax.tick_params(which="both", colors=INK, labelsize=9)
        ax.xaxis.label.set_color(INK)
        ax.yaxis.label.set_color(INK)
        for side, spine in ax.spines.items():
            spine.set_color(INK)
            spine.set_visible(side in ("left", "bottom"))
    return figure, *axes


def _svg(figure: Figure, salt: str) -> str:
    """The <svg> element; `salt` keeps its ids apart from those of other plots in the same page."""
    import matplotlib

    labelled = figure.axes[0].get_legend_handles_labels()
    if len(labelled[0]) > 1:
        figure.legend(*labelled, loc="outside right upper", frameon=False, labelcolor=INK, fontsize=9)
    out = io.StringIO()
    settings = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.family": "sans-serif"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # the browser has its own fonts
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    drawn = out.getvalue()
    return drawn[drawn.index("<svg") :].replace(INK, "currentColor")
